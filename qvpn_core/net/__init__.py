"""The kernel's network, used as root: TUN, addresses, routes, rules, firewall."""
