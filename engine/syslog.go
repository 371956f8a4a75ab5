package engine

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

// syslogConfig says where and how a container's lines go to syslog.
type syslogConfig struct {
	Network, Address string
	Tag              string
	Facility         int
}

const syslogDaemon = 3 // the facility of system services

// syslogTimeout bounds a connection attempt and a write.
const syslogTimeout = 2 * time.Second

func parseSyslog(options map[string]string) (syslogConfig, error) {
	c := syslogConfig{Network: "unixgram", Address: "/dev/log", Facility: syslogDaemon}
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
			n, ok := syslogFacilities()[value]
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

func (c *syslogConfig) setAddress(u *url.URL) error {
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

func syslogFacilities() map[string]int {
	m := map[string]int{}
	for i, name := range strings.Fields("kern user mail daemon auth syslog lpr news uucp cron authpriv ftp") {
		m[name] = i
	}
	for i := range 8 {
		m[fmt.Sprintf("local%d", i)] = 16 + i
	}
	return m
}

// syslog sends lines in the form of RFC 3164, which every syslog server reads.
type syslog struct {
	c    syslogConfig
	tag  string
	host string
	mu   sync.Mutex
	conn net.Conn
}

func newSyslog(c syslogConfig, container config) *syslog {
	tag := c.Tag
	if tag == "" || strings.Contains(tag, "{{") { // Docker's templates: the two that people use
		tag = strings.NewReplacer("{{.Name}}", container.Name, "{{.ID}}", container.ID).Replace(tag)
	}
	if tag == "" {
		tag = container.Name
	}
	host, err := os.Hostname()
	if err != nil {
		host = "localhost"
	}
	return &syslog{c: c, tag: tag, host: host}
}

// send sends one line. On an error the line is kept and sent again later.
func (s *syslog) send(stream string, line []byte, at time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	severity := 6 // informational
	if stream == "stderr" {
		severity = 3 // error, as Docker does
	}
	msg := fmt.Sprintf("<%d>%s %s %s[%d]: %s\n", s.c.Facility*8+severity, at.Format(time.Stamp), s.host, s.tag, os.Getpid(),
		bytes.TrimRight(line, "\r\n"))
	if s.conn == nil {
		conn, err := net.DialTimeout(s.c.Network, s.c.Address, syslogTimeout)
		if err != nil {
			return err
		}
		s.conn = conn
	}
	if err := s.conn.SetWriteDeadline(time.Now().Add(syslogTimeout)); err != nil {
		return err
	}
	if _, err := s.conn.Write([]byte(msg)); err != nil {
		_ = s.conn.Close()
		s.conn = nil
		return err
	}
	return nil
}
