"""Measures qvpn beside other tunnels, in network namespaces of its own.

``python -m bench`` is the comparison with others, ``python -m bench.quic_cost`` what QUIC itself
costs in Python. Nothing here is imported by the product.
"""
