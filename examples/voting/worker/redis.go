package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"
)

// redisConn is one connection that speaks RESP2, as much of it as streams need.
type redisConn struct {
	net.Conn
	in *bufio.Reader
}

const (
	maxBulk  = 1 << 20
	maxItems = 10_000
)

func dialRedis(addr string) (*redisConn, error) {
	conn, err := net.DialTimeout("tcp", addr, 3*time.Second)
	if err != nil {
		return nil, fmt.Errorf("queue: %w", err)
	}
	return &redisConn{Conn: conn, in: bufio.NewReader(conn)}, nil
}

// Do sends one command and reads its answer: string, int64, []interface{} or nil.
func (c *redisConn) Do(args ...string) (interface{}, error) {
	var b strings.Builder
	fmt.Fprintf(&b, "*%d\r\n", len(args))
	for _, arg := range args {
		fmt.Fprintf(&b, "$%d\r\n%s\r\n", len(arg), arg)
	}
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return nil, err
	}
	if _, err := io.WriteString(c, b.String()); err != nil {
		return nil, fmt.Errorf("queue: %w", err)
	}
	answer, err := c.read(0)
	if err != nil {
		return nil, fmt.Errorf("queue: %s: %w", args[0], err)
	}
	return answer, nil
}

func (c *redisConn) read(depth int) (interface{}, error) {
	line, err := c.in.ReadString('\n')
	if err != nil {
		return nil, err
	}
	line = strings.TrimSuffix(line, "\r\n")
	if line == "" || depth > 8 {
		return nil, errors.New("malformed answer")
	}
	rest := line[1:]
	switch line[0] {
	case '+':
		return rest, nil
	case '-':
		return nil, errors.New(rest)
	case ':':
		return strconv.ParseInt(rest, 10, 64)
	case '$':
		return c.readBulk(rest)
	case '*':
		return c.readList(rest, depth)
	}
	return nil, fmt.Errorf("malformed answer %q", line)
}

func (c *redisConn) readBulk(length string) (interface{}, error) {
	n, err := strconv.Atoi(length)
	if err != nil || n < 0 || n > maxBulk {
		if n == -1 {
			return nil, nil
		}
		return nil, fmt.Errorf("malformed length %q", length)
	}
	buf := make([]byte, n+2)
	if _, err := io.ReadFull(c.in, buf); err != nil {
		return nil, err
	}
	return string(buf[:n]), nil
}

func (c *redisConn) readList(length string, depth int) (interface{}, error) {
	n, err := strconv.Atoi(length)
	if err != nil || n < 0 || n > maxItems {
		if n == -1 {
			return nil, nil
		}
		return nil, fmt.Errorf("malformed length %q", length)
	}
	items := make([]interface{}, n)
	for i := range items {
		if items[i], err = c.read(depth + 1); err != nil {
			return nil, err
		}
	}
	return items, nil
}
