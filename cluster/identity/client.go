package identity

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"time"
)

const (
	dialTimeout = 3 * time.Second
	// pingAfter of silence on a connection the other end is asked whether it is there; pingWait later the connection is given up.
	pingAfter = 2 * time.Second
	pingWait  = 3 * time.Second
	// IdleTime is how long a connection is kept on which nothing is asked. Servers keep theirs longer, so that none ends while
	// a call begins.
	IdleTime = 90 * time.Second
)

// Client calls machines whose certificates have the name (see ClientTLS). Every connection uses the certificate in force when
// it is made.
func (k *Keeper) Client(name string) *http.Client {
	return client(func() *tls.Config { return k.ClientTLS(name) })
}

// JoinClient makes the first call of a machine that has only a token.
func JoinClient(t Token) *http.Client {
	return client(func() *tls.Config { return JoinTLS(t) })
}

func client(config func() *tls.Config) *http.Client {
	protocols := new(http.Protocols)
	protocols.SetHTTP2(true)
	return &http.Client{Transport: &http.Transport{
		Protocols: protocols, DisableCompression: true, IdleConnTimeout: IdleTime,
		HTTP2: &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingWait},
		DialTLSContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			d := tls.Dialer{NetDialer: &net.Dialer{Timeout: dialTimeout}, Config: config()}
			ctx, cancel := context.WithTimeout(ctx, 2*dialTimeout)
			defer cancel()
			return d.DialContext(ctx, network, address)
		},
	}}
}
