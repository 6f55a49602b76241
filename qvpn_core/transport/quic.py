"""placeholder being written by the transport owner. Public API other modules code against:

async def connect(
    host: str, port: int, *, trust: Trust, request: Request, handler: TunnelHandler,
    timeout: float = 10.0, socket_factory: Callable[[int], socket.socket] | None = None,
    on_stage: Callable[[str], None] | None = None,   # "resolving" "handshake" "authenticating"
) -> HttpTunnel
    # Resolves, shakes hands, checks trust, sends `request`, returns once 2xx arrived and the path is
    # known to carry at least an inner MTU of 1280. Raises NameNotResolved, GatewayUnreachable,
    # CertificateUntrusted, AuthenticationFailed (401/403), GatewayRefused (other status), PathTooNarrow.
    # socket_factory(family) returns an unbound UDP socket (marked by the caller).

class QuicListener:
    @classmethod
    async def start(cls, addresses: Sequence[Address], *, certificate: Path, private_key: Path,
                    on_request: Callable[[IncomingRequest], None]) -> QuicListener   # raises PortInUse
    addresses: list[Address]      # bound, with the real ports
    connections: int              # live QUIC connections
    async def close(self, reason: str = "", drain: float = 1.0) -> None   # CONNECTION_CLOSE to every peer
"""
