// Command connect-udp-peer is an independent CONNECT-UDP (RFC 9298) client for qvpn's
// interoperation tests. The protocol is github.com/quic-go/masque-go; this program sends numbered
// datagrams to echo services through one proxy connection, all targets at once, and prints a line
// of JSON for everything a test waits for.
package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/quic-go/masque-go"
	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
	"github.com/yosida95/uritemplate/v3"
)

const (
	template = "/.well-known/masque/udp/{target_host}/{target_port}/"
	patience = 20 * time.Second
)

type fields map[string]any

var stdout sync.Mutex

// emit prints one event.
func emit(event string, f fields) {
	line := fields{"event": event}
	for key, value := range f {
		line[key] = value
	}
	stdout.Lock()
	defer stdout.Unlock()
	_ = json.NewEncoder(os.Stdout).Encode(line)
}

func main() {
	proxy := flag.String("url", "", "https://HOST:PORT of the proxy")
	pin := flag.String("pin", "", "trust the server with this key: sha256/BASE64")
	token := flag.String("token", "", "send this bearer token")
	targets := flag.String("targets", "", "HOST:PORT of echo services, separated by commas")
	count := flag.Int("count", 10, "datagrams to each target")
	size := flag.Int("size", 100, "bytes of each datagram, 8 or more")
	flag.Parse()
	err := run(*proxy, *pin, *token, strings.Split(*targets, ","), *count, *size)
	reason := ""
	if err != nil {
		reason = err.Error()
	}
	emit("exit", fields{"error": reason})
	if err != nil {
		os.Exit(1)
	}
}

func run(proxy, pin, token string, targets []string, count, size int) error {
	ctx, cancel := context.WithTimeout(context.Background(), 3*patience)
	defer cancel()
	where, err := url.Parse(proxy)
	if err != nil {
		return err
	}
	config := &quic.Config{EnableDatagrams: true, InitialPacketSize: 1350}
	connection, err := quic.DialAddr(ctx, where.Host, pinned(pin), config)
	if err != nil {
		return err
	}
	defer connection.CloseWithError(0, "")
	client, err := new(masque.Transport).NewClientConn(connection)
	if err != nil {
		return err
	}
	expand, err := uritemplate.New(proxy + template)
	if err != nil {
		return err
	}
	results := make(chan error)
	for _, target := range targets {
		go func() { results <- echo(ctx, client, expand, token, target, count, size) }()
	}
	for range targets {
		err = errors.Join(err, <-results)
	}
	return err
}

// echo sends datagrams to one target and counts what comes back unchanged.
func echo(
	ctx context.Context, client *masque.ClientConn, expand *uritemplate.Template,
	token, target string, count, size int,
) error {
	request, err := masque.NewRequest(ctx, expand, target)
	if err != nil {
		return err
	}
	if token != "" {
		request.Header().Set("Authorization", "Bearer "+token)
	}
	conn, response, err := client.Dial(request)
	if response != nil && response.StatusCode != http.StatusOK {
		status := response.Header.Get("Proxy-Status")
		emit("refused", fields{"target": target, "status": response.StatusCode, "proxy_status": status})
		return nil
	}
	if err != nil {
		return err
	}
	hop := conn.RemoteAddr().String()
	capsules := response.Header.Get("Capsule-Protocol")
	emit("open", fields{"target": target, "next_hop": hop, "capsule_protocol": capsules})
	back := 0
	buffer := make([]byte, 1<<16)
	for number := range count {
		sent := payload(number, size)
		if _, err := conn.WriteTo(sent, nil); err != nil {
			return fmt.Errorf("sending %d bytes: %w", size, err)
		}
		_ = conn.SetReadDeadline(time.Now().Add(patience))
		got, _, err := conn.ReadFrom(buffer)
		if err != nil {
			return fmt.Errorf("waiting for datagram %d: %w", number, err)
		}
		if bytes.Equal(buffer[:got], sent) {
			back++
		}
	}
	emit("echoed", fields{"target": target, "count": back})
	return conn.Close()
}

func payload(number, size int) []byte {
	data := make([]byte, size)
	for at := range data {
		data[at] = byte(number + at)
	}
	binary.BigEndian.PutUint64(data, uint64(number))
	return data
}

// pinned trusts the server that has the key of the pin, and no other.
func pinned(pin string) *tls.Config {
	return &tls.Config{
		NextProtos:         []string{http3.NextProtoH3},
		InsecureSkipVerify: true,
		VerifyPeerCertificate: func(raw [][]byte, _ [][]*x509.Certificate) error {
			leaf, err := x509.ParseCertificate(raw[0])
			if err != nil {
				return err
			}
			digest := sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
			if "sha256/"+base64.StdEncoding.EncodeToString(digest[:]) != pin {
				return errors.New("the server's key is not the pinned one")
			}
			return nil
		},
	}
}
