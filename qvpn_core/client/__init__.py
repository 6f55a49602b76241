"""The client: profiles, the route planner, the tunnel state machine, the qvpn command."""
