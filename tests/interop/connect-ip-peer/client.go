package main

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"time"

	connectip "github.com/quic-go/connect-ip-go"
	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/qlog"
	"github.com/yosida95/uritemplate/v3"
)

const (
	// defaultPath asks for any target and any protocol (RFC 9484 sections 3 and 4.6).
	defaultPath = "/.well-known/masque/ip/{target}/{ipproto}/"
	// tunMTU leaves room in the packets that quic-go starts with.
	tunMTU = 1280
	// initialPacketSize must let a tunnelled packet of 1280 bytes through before path MTU discovery
	// has run; quic-go's default of 1280 would not.
	initialPacketSize = 1350
	setupTimeout      = 10 * time.Second
)

// quicConfig is both sides'. QLOGDIR in the environment names a directory for traces (qlog).
func quicConfig() *quic.Config {
	return &quic.Config{
		Tracer:            qlog.DefaultConnectionTracer,
		EnableDatagrams:   true,
		InitialPacketSize: initialPacketSize,
		MaxIdleTimeout:    30 * time.Second,
		KeepAlivePeriod:   10 * time.Second,
	}
}

// wildcard expands the two variables of RFC 9484 section 4.6, since connect-ip-go takes no template
// that has any. The asterisk stays as it is, as in the RFC's own examples.
var wildcard = strings.NewReplacer("{target}", "*", "{ipproto}", "*")

func runClient(ctx context.Context, arguments []string) error {
	flags := flag.NewFlagSet("client", flag.ExitOnError)
	proxy := flags.String("url", "", "URI template of the proxy; without a path, the default template")
	pin := flags.String("pin", "", "trust the server with this key: sha256/BASE64")
	caFile := flags.String("ca", "", "trust the authorities in this PEM file")
	token := flags.String("token", "", "send this bearer token")
	request := flags.Bool("request", false, "ask for addresses with ADDRESS_REQUEST")
	name := flags.String("tun", "peer0", "name of the TUN interface")
	mtu := flags.Int("mtu", tunMTU, "MTU of the TUN interface")
	linger := flags.Duration("linger", 0, "keep the QUIC connection this long after the tunnel")
	_ = flags.Parse(arguments)

	tlsConfig, err := clientTLS(*pin, *caFile)
	if err != nil {
		return err
	}
	template, err := expand(*proxy)
	if err != nil {
		return err
	}
	connection, err := connect(ctx, template, tlsConfig)
	if err != nil {
		return err
	}
	// As the library itself does where it owns the connection.
	defer connection.CloseWithError(0, "")
	conn, err := open(ctx, connection, template, *token)
	if err != nil {
		return err
	}
	defer conn.Close()
	tun, err := openTUN(*name, *mtu)
	if err != nil {
		return err
	}
	defer tun.Close()

	setup, cancel := context.WithTimeout(ctx, setupTimeout)
	defer cancel()
	if *request {
		if _, err := conn.RequestAddresses([]netip.Prefix{
			netip.PrefixFrom(netip.IPv4Unspecified(), 32),
			netip.PrefixFrom(netip.IPv6Unspecified(), 128),
		}); err != nil {
			return err
		}
	}
	if err := configure(setup, conn, *name); err != nil {
		return err
	}
	go reportDNS(ctx, conn)
	err = pump(ctx, conn, tun)
	select {
	case <-connection.Context().Done():
	case <-time.After(*linger):
	}
	return fmt.Errorf("the tunnel ended: %w", err)
}

// expand completes a proxy's URL to one for any target and protocol.
func expand(text string) (*uritemplate.Template, error) {
	if authority, isHTTPS := strings.CutPrefix(text, "https://"); !isHTTPS {
		return nil, errors.New("-url must begin with https://")
	} else if !strings.Contains(authority, "/") {
		text += defaultPath
	}
	return uritemplate.New(wildcard.Replace(text))
}

// connect opens the QUIC connection to the proxy.
func connect(
	ctx context.Context, template *uritemplate.Template, tlsConfig *tls.Config,
) (*quic.Conn, error) {
	proxy, err := url.Parse(template.Raw())
	if err != nil {
		return nil, err
	}
	address := proxy.Host
	if proxy.Port() == "" {
		address = net.JoinHostPort(proxy.Hostname(), "443")
	}
	ctx, cancel := context.WithTimeout(ctx, setupTimeout)
	defer cancel()
	return quic.DialAddr(ctx, address, tlsConfig, quicConfig())
}

// open opens the tunnel, or says which status the proxy answered with.
func open(
	ctx context.Context, connection *quic.Conn, template *uritemplate.Template, token string,
) (*connectip.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, setupTimeout)
	defer cancel()
	request, err := connectip.NewRequest(ctx, template)
	if err != nil {
		return nil, err
	}
	if token != "" {
		request.Header().Set("Authorization", "Bearer "+token)
	}
	client, err := new(connectip.Transport).NewClientConn(connection)
	if err != nil {
		return nil, err
	}
	conn, response, err := client.Dial(request)
	if err != nil && response != nil {
		emit("refused", fields{"status": response.StatusCode})
	}
	return conn, err
}

// configure waits for addresses and routes and gives them to the interface.
func configure(ctx context.Context, conn *connectip.Conn, name string) error {
	assigned, err := conn.ReceiveAddressAssignment(ctx)
	if err != nil {
		return fmt.Errorf("no addresses: %w", err)
	}
	var addresses []netip.Prefix
	for _, assignment := range assigned {
		if !assignment.Rejected() {
			addresses = append(addresses, assignment.IPPrefix)
		}
	}
	ranges, err := conn.Routes(ctx)
	if err != nil {
		return fmt.Errorf("no routes: %w", err)
	}
	var routes []netip.Prefix
	for _, r := range ranges {
		routes = append(routes, r.Prefixes()...)
	}
	for _, address := range addresses {
		if err := ip("address", "add", address.String(), "dev", name, "noprefixroute"); err != nil {
			return err
		}
	}
	for _, route := range routes {
		if err := ip("route", "add", route.String(), "dev", name); err != nil {
			return err
		}
	}
	emit("connected", fields{"addresses": texts(addresses), "routes": texts(routes)})
	return nil
}

// reportDNS prints every DNS configuration that the proxy sends.
func reportDNS(ctx context.Context, conn *connectip.Conn) {
	for {
		configurations, err := conn.ReceiveDNSConfiguration(ctx)
		if err != nil {
			return
		}
		var servers, search []string
		for _, configuration := range configurations {
			for _, server := range configuration.Nameservers {
				servers = append(servers, texts(server.IPv4Addresses)...)
				servers = append(servers, texts(server.IPv6Addresses)...)
			}
			search = append(search, configuration.SearchDomains...)
		}
		emit("dns", fields{"servers": servers, "search": search})
	}
}
