// Package syslog sends the lines of one container to a syslog server. Parse what a container asks for, then make a Client; its
// Send is safe in parallel.
package syslog

import (
	"bytes"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/gantryd/gantry/fault"
)

// Config says where and how a container's lines go to syslog.
type Config struct {
	Network, Address string
	Tag              string
	Facility         int
}

const daemon = 3 // the facility of system services

// timeout bounds a connection attempt and a write.
const timeout = 2 * time.Second

// Parse reads the options of the driver "syslog".
func Parse(options map[string]string) (Config, error) {
	c := Config{Network: "unixgram", Address: "/dev/log", Facility: daemon}
	for key, value := range options {
		switch key {
		case "syslog-address":
			u, err := url.Parse(value)
			if err != nil {
				return c, fault.Wrap(fault.Invalid, err, "logging option syslog-address: %q", value)
			}
			if err := c.setAddress(u); err != nil {
				return c, err
			}
		case "tag":
			c.Tag = value
		case "syslog-facility":
			n, ok := facilities()[value]
			if !ok {
				return c, fault.New(fault.Invalid, "logging option syslog-facility: %q is unknown", value)
			}
			c.Facility = n
		case "syslog-format", "labels", "env":
		default:
			return c, fault.New(fault.Invalid, "logging option %q of syslog is unknown", key).
				WithHint("syslog-address, syslog-facility, tag")
		}
	}
	return c, nil
}

func (c *Config) setAddress(u *url.URL) error {
	switch u.Scheme {
	case "unix", "unixgram":
		c.Network, c.Address = "unixgram", u.Path
	case "udp", "tcp":
		c.Network, c.Address = u.Scheme, u.Host
		if u.Port() == "" {
			c.Address = net.JoinHostPort(u.Hostname(), "514")
		}
	default:
		return fault.New(fault.Unsupported, "logging option syslog-address: %q", u).WithHint("udp://HOST:PORT, tcp://HOST:PORT or unixgram:///dev/log")
	}
	return nil
}

func facilities() map[string]int {
	m := map[string]int{}
	for i, name := range strings.Fields("kern user mail daemon auth syslog lpr news uucp cron authpriv ftp") {
		m[name] = i
	}
	for i := range 8 {
		m[fmt.Sprintf("local%d", i)] = 16 + i
	}
	return m
}

// Client sends lines in the form of RFC 3164, which every syslog server reads.
type Client struct {
	c    Config
	tag  string
	host string
	mu   sync.Mutex
	conn net.Conn
}

// New makes a client for the container of that name and ID. It connects when there is a line to send.
func New(c Config, name, id string) *Client {
	tag := c.Tag
	if tag == "" || strings.Contains(tag, "{{") { // Docker's templates: the two that people use
		tag = strings.NewReplacer("{{.Name}}", name, "{{.ID}}", id).Replace(tag)
	}
	if tag == "" {
		tag = name
	}
	host, err := os.Hostname()
	if err != nil {
		host = "localhost"
	}
	return &Client{c: c, tag: tag, host: host}
}

// Send sends one line. On an error the line is kept and sent again later.
func (s *Client) Send(stream string, line []byte, at time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	severity := 6 // informational
	if stream == "stderr" {
		severity = 3 // error, as Docker does
	}
	msg := fmt.Sprintf("<%d>%s %s %s[%d]: %s\n", s.c.Facility*8+severity, at.Format(time.Stamp), s.host, s.tag, os.Getpid(),
		bytes.TrimRight(line, "\r\n"))
	if s.conn == nil {
		conn, err := net.DialTimeout(s.c.Network, s.c.Address, timeout)
		if err != nil {
			return err
		}
		s.conn = conn
	}
	if err := s.conn.SetWriteDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	if _, err := s.conn.Write([]byte(msg)); err != nil {
		_ = s.conn.Close()
		s.conn = nil
		return err
	}
	return nil
}
