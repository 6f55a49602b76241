package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"os/exec"
	"strconv"
	"strings"

	connectip "github.com/quic-go/connect-ip-go"
	"golang.org/x/sys/unix"
)

// openTUN creates the interface and brings it up. Closing the file removes it.
func openTUN(name string, mtu int) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("opening /dev/net/tun: %w", err)
	}
	request, err := unix.NewIfreq(name)
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("interface name %q: %w", name, err)
	}
	request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("creating %s: %w", name, err)
	}
	// A non-blocking descriptor joins Go's poller, so that Close ends a Read that waits.
	tun := os.NewFile(uintptr(fd), name)
	// CONNECT-IP links have no link-local addresses (RFC 9484 section 4.7.1).
	err = errors.Join(
		ip("link", "set", name, "addrgenmode", "none"),
		ip("link", "set", name, "up", "mtu", strconv.Itoa(mtu)),
	)
	if err != nil {
		_ = tun.Close()
		return nil, err
	}
	return tun, nil
}

// ip runs ip(8) with the given arguments.
func ip(arguments ...string) error {
	if output, err := exec.Command("ip", arguments...).CombinedOutput(); err != nil {
		return fmt.Errorf("ip %s: %s", strings.Join(arguments, " "), strings.TrimSpace(string(output)))
	}
	return nil
}

// tunToTunnel moves packets from the kernel into whatever tunnel `current` names at the moment,
// until the TUN closes. A packet that no tunnel can take is dropped, as a router would; the ICMP
// error that the library makes for one too big goes back to the kernel.
func tunToTunnel(tun *os.File, current func() *connectip.Conn) error {
	buffer := make([]byte, 1<<16)
	for {
		n, err := tun.Read(buffer)
		if err != nil {
			return err
		}
		conn := current()
		if conn == nil {
			continue
		}
		icmp, err := conn.WritePacket(buffer[:n])
		if err != nil {
			log.Printf("packet of %d bytes not sent: %v", n, err)
		}
		if len(icmp) > 0 {
			emit("packet_too_big", fields{"size": n})
			if _, err := tun.Write(icmp); err != nil {
				return err
			}
		}
	}
}

// tunnelToTUN moves packets from the tunnel to the kernel until the tunnel closes.
func tunnelToTUN(conn *connectip.Conn, tun *os.File) error {
	buffer := make([]byte, 1<<16)
	for {
		n, err := conn.ReadPacket(buffer)
		if err != nil {
			return err
		}
		// The kernel refuses a packet that it finds malformed; that is not the tunnel's end.
		if _, err := tun.Write(buffer[:n]); err != nil && !errors.Is(err, unix.EINVAL) {
			return err
		}
	}
}

// pump moves packets both ways until the tunnel or ctx ends, and closes the tunnel.
func pump(ctx context.Context, conn *connectip.Conn, tun *os.File) error {
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	go func() { _ = tunToTunnel(tun, func() *connectip.Conn { return conn }) }()
	err := tunnelToTUN(conn, tun)
	_ = conn.Close()
	return err
}
