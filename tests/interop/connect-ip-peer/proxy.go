package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"

	connectip "github.com/quic-go/connect-ip-go"
	"github.com/quic-go/quic-go/http3"
	"github.com/yosida95/uritemplate/v3"
)

// proxy serves one tunnel at a time; a new one takes the place of the last.
type proxy struct {
	template  *uritemplate.Template
	token     string
	addresses []netip.Prefix
	dns       []netip.Addr
	tun       *os.File

	mu      sync.Mutex
	current *connectip.Conn
}

func runProxy(ctx context.Context, arguments []string) error {
	flags := flag.NewFlagSet("proxy", flag.ExitOnError)
	listen := flags.String("listen", "0.0.0.0:0", "address and UDP port to listen on")
	host := flags.String("host", "", "host that clients name in :authority; the port is appended")
	token := flags.String("token", "", "demand this bearer token")
	subnet4 := flags.String("subnet4", "10.97.0.0/24", "the proxy takes .1, the client gets .2")
	subnet6 := flags.String("subnet6", "fd97::/64", "likewise")
	dns := flags.String("dns", "", "comma-separated addresses to send with DNS_ASSIGN")
	name := flags.String("tun", "peer0", "name of the TUN interface")
	mtu := flags.Int("mtu", tunMTU, "MTU of the TUN interface")
	_ = flags.Parse(arguments)

	p := &proxy{token: *token}
	for text := range strings.SplitSeq(*dns, ",") {
		if text == "" {
			continue
		}
		address, err := netip.ParseAddr(text)
		if err != nil {
			return err
		}
		p.dns = append(p.dns, address)
	}
	tun, err := openTUN(*name, *mtu)
	if err != nil {
		return err
	}
	defer tun.Close()
	p.tun = tun
	for _, text := range []string{*subnet4, *subnet6} {
		subnet, err := netip.ParsePrefix(text)
		if err != nil {
			return err
		}
		own := subnet.Masked().Addr().Next()
		p.addresses = append(p.addresses, netip.PrefixFrom(own.Next(), own.BitLen()))
		interfaceAddress := netip.PrefixFrom(own, subnet.Bits()).String()
		if err := ip("address", "add", interfaceAddress, "dev", *name, "nodad"); err != nil {
			return err
		}
	}
	return p.serve(ctx, *listen, *host)
}

// serve answers requests until ctx ends, then ends the tunnel and the connections in order.
func (p *proxy) serve(ctx context.Context, listen, host string) error {
	tlsConfig, pin, err := serverTLS()
	if err != nil {
		return err
	}
	address, err := net.ResolveUDPAddr("udp", listen)
	if err != nil {
		return err
	}
	socket, err := net.ListenUDP("udp", address)
	if err != nil {
		return err
	}
	defer socket.Close()
	bound := socket.LocalAddr().(*net.UDPAddr)
	if host == "" {
		host = bound.IP.String()
	}
	authority := net.JoinHostPort(host, fmt.Sprint(bound.Port))
	p.template, err = uritemplate.New("https://" + authority + wildcard.Replace(defaultPath))
	if err != nil {
		return err
	}

	server := &http3.Server{
		Handler:         p,
		EnableDatagrams: true,
		TLSConfig:       tlsConfig,
		QUICConfig:      quicConfig(),
	}
	stop := context.AfterFunc(ctx, func() {
		p.replace(nil)
		_ = server.Close()
	})
	defer stop()
	go func() { _ = tunToTunnel(p.tun, p.tunnel) }()
	emit("listening", fields{"port": bound.Port, "pin": pin, "authority": authority})
	if err := server.Serve(socket); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// ServeHTTP accepts CONNECT-IP on the default path, for any target and protocol.
func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	request, status, err := p.check(r)
	if err != nil {
		emit("refused", fields{"status": status, "error": err.Error()})
		w.WriteHeader(status)
		return
	}
	conn, err := new(connectip.Proxy).Proxy(w, request)
	if err != nil {
		emit("failed", fields{"error": err.Error()})
		return
	}
	p.replace(conn)
	if err := p.configure(conn); err != nil {
		emit("failed", fields{"error": err.Error()})
		_ = conn.Close()
		return
	}
	emit("accepted", fields{"peer": r.RemoteAddr, "addresses": texts(p.addresses)})
	// The stream outlives this handler, and so must its packets.
	go p.answerAddressRequests(conn)
	go func() {
		err := tunnelToTUN(conn, p.tun)
		_ = conn.Close()
		emit("closed", fields{"reason": err.Error()})
	}()
}

// check decides about a request: the status to refuse it with, or the request.
func (p *proxy) check(r *http.Request) (*connectip.ProxyRequest, int, error) {
	// The path is compared decoded: a client may send the asterisks as they are or as %2A.
	if r.URL.Path != wildcard.Replace(defaultPath) {
		return nil, http.StatusNotFound, fmt.Errorf("path %s", r.URL.Path)
	}
	if p.token != "" && r.Header.Get("Authorization") != "Bearer "+p.token {
		return nil, http.StatusUnauthorized, errors.New("bearer token missing or wrong")
	}
	request, err := connectip.ParseProxyRequest(r, p.template)
	if parse, ok := errors.AsType[*connectip.ProxyRequestParseError](err); ok {
		return nil, parse.HTTPStatus, err
	}
	return request, http.StatusInternalServerError, err
}

// configure sends addresses, routes to everywhere and, after those, name servers.
func (p *proxy) configure(conn *connectip.Conn) error {
	if err := conn.AssignAddresses(p.addresses); err != nil {
		return err
	}
	err := conn.AdvertiseRoute([]connectip.IPRoute{
		{StartIP: netip.IPv4Unspecified(), EndIP: netip.MustParseAddr("255.255.255.255")},
		{
			StartIP: netip.IPv6Unspecified(),
			EndIP:   netip.MustParseAddr("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
		},
	})
	if err != nil || len(p.dns) == 0 {
		return err
	}
	server := connectip.DNSNameserver{ServicePriority: 1}
	for _, address := range p.dns {
		if address.Is4() {
			server.IPv4Addresses = append(server.IPv4Addresses, address)
		} else {
			server.IPv6Addresses = append(server.IPv6Addresses, address)
		}
	}
	return conn.SendDNSConfiguration([]connectip.DNSConfiguration{
		{Nameservers: []connectip.DNSNameserver{server}},
	})
}

// answerAddressRequests gives a client that asks what it has been given unasked: the first request
// of each family gets the address, any other is refused.
func (p *proxy) answerAddressRequests(conn *connectip.Conn) {
	for {
		request, err := conn.ReceiveAddressRequest(context.Background())
		if err != nil {
			return
		}
		emit("address_request", fields{"prefixes": texts(request.Prefixes)})
		left := append([]netip.Prefix(nil), p.addresses...)
		answers := make([]netip.Prefix, len(request.Prefixes))
		for i, wanted := range request.Prefixes {
			for j, address := range left {
				if address.Addr().Is4() == wanted.Addr().Is4() {
					answers[i] = address
					left = append(left[:j], left[j+1:]...)
					break
				}
			}
		}
		if err := request.Respond(answers, left); err != nil {
			emit("failed", fields{"error": err.Error()})
		}
	}
}

func (p *proxy) tunnel() *connectip.Conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.current
}

// replace makes conn the tunnel that packets go to and ends the one before it.
func (p *proxy) replace(conn *connectip.Conn) {
	p.mu.Lock()
	last := p.current
	p.current = conn
	p.mu.Unlock()
	if last != nil {
		_ = last.Close()
	}
}
