// Command connect-ip-peer is an independent CONNECT-IP (RFC 9484) client and proxy for qvpn's
// interoperation tests. The protocol is github.com/quic-go/connect-ip-go; this program adds a TUN
// device, authentication and a line of JSON on standard output for everything a test waits for.
//
// It is no VPN to be used: one tunnel at a time, no reconnection, no care for the routes that the
// machine has already. Run it as root in a network namespace of its own.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"
)

var commands = map[string]func(context.Context, []string) error{
	"client": runClient,
	"proxy":  runProxy,
}

func main() {
	if len(os.Args) < 2 || commands[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "usage: connect-ip-peer client|proxy [flags]; -h lists the flags")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	err := commands[os.Args[1]](ctx, os.Args[2:])
	reason := ""
	if err != nil && ctx.Err() == nil {
		reason = err.Error()
	}
	emit("exit", fields{"error": reason})
	if reason != "" {
		fmt.Fprintln(os.Stderr, "connect-ip-peer: "+reason)
		os.Exit(1)
	}
}

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

// texts renders addresses, prefixes and the like for an event.
func texts[T fmt.Stringer](values []T) []string {
	out := make([]string, 0, len(values))
	for _, value := range values {
		out = append(out, value.String())
	}
	return out
}
