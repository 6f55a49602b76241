"""The names and numbers by which qvpn recognises its own things in the kernel.

Whatever carries one of these is ours to replace and to remove; nothing else is ever touched. All of
them are fixed, so that leftovers of a killed process can be told apart without a note from it.
"""

from __future__ import annotations

from typing import Final

#: The client's and the gateway's TUN devices. One of each fits in a network namespace.
CLIENT_TUN: Final = "qvpn0"
GATEWAY_TUN: Final = "qvpns0"

#: The routing table of tunnelled destinations. 9484 is the RFC of CONNECT-IP.
TABLE: Final = 9484

#: Where our rules stand: after Tailscale's (5210-5270), before main (32766) and before whatever
#: takes the next free number below main, as wg-quick and ``ip rule add`` do.
RULE_PRIORITY: Final = 9484

#: ``SO_MARK`` of the transport's sockets, which our rules let pass. Free of the bits that
#: kube-proxy (0x4000, 0x8000) and Tailscale (0xff0000) test with a mask.
FWMARK: Final = 0x2094

#: ``rtm_protocol`` (linux/rtnetlink.h) of our routes and ``FRA_PROTOCOL`` of our rules.
PROTOCOL: Final = 148

#: nftables tables. The client also owns an ``arp`` table of the same name.
CLIENT_NFT_TABLE: Final = "qvpn_client"
KILL_SWITCH_NFT_TABLE: Final = "qvpn_kill_switch"
SIGN_IN_NFT_TABLE: Final = "qvpn_sign_in"
GATEWAY_NFT_TABLE: Final = "qvpn_gateway"
