// Package client is the one typed client of the Gantry API.
//
// Make one with New; its fields are the generated clients of each service. A Client is safe in parallel and holds one
// HTTP/2 connection that is made at the first call. Every error it returns is a fault with kind, message and hint. The
// package does not retry, and does not start the daemon.
package client

import (
	"context"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/gantryd/gantry/api/gen/gantry/v1/gantryv1connect"
	"github.com/gantryd/gantry/fault"
)

// DefaultHost is where gantryd listens unless told otherwise.
const DefaultHost = "unix:///run/gantry/gantry.sock"

// Options of a client. The zero value talks to the daemon of this machine.
type Options struct {
	// Host is "unix:///path/to/socket" or "tcp://host:port"; empty for DefaultHost.
	Host string
	// DialTimeout is how long connecting may take; 0 for 10 seconds.
	DialTimeout time.Duration
}

// Client has one field for each service of the API.
type Client struct {
	Apps       gantryv1connect.AppServiceClient
	Instances  gantryv1connect.InstanceServiceClient
	Images     gantryv1connect.ImageServiceClient
	Volumes    gantryv1connect.VolumeServiceClient
	Networks   gantryv1connect.NetworkServiceClient
	Secrets    gantryv1connect.SecretServiceClient
	Configs    gantryv1connect.ConfigServiceClient
	System     gantryv1connect.SystemServiceClient
	Cluster    gantryv1connect.ClusterServiceClient
	Nodes      gantryv1connect.NodeAdminServiceClient
	Recovery   gantryv1connect.RecoveryServiceClient
	Operations gantryv1connect.OperationServiceClient
	Explain    gantryv1connect.ExplainServiceClient

	host      string
	transport *http.Transport
}

// New makes a client. It does not connect; an unreachable daemon shows at the first call.
func New(opts Options) (*Client, error) {
	if opts.Host == "" {
		opts.Host = DefaultHost
	}
	if opts.DialTimeout == 0 {
		opts.DialTimeout = 10 * time.Second
	}
	network, address, err := parseHost(opts.Host)
	if err != nil {
		return nil, err
	}
	c := &Client{host: opts.Host, transport: newTransport(network, address, opts.DialTimeout)}
	hc := &http.Client{Transport: c.transport}
	// The host name stands in the request only; the transport always dials the address above.
	const base = "http://gantry"
	with := connect.WithClientOptions(
		connect.WithInterceptors(&faults{host: opts.Host, network: network, address: address}),
		// Compressing a local stream costs more than it saves.
		connect.WithAcceptCompression("gzip", nil, nil),
	)
	c.Apps = gantryv1connect.NewAppServiceClient(hc, base, with)
	c.Instances = gantryv1connect.NewInstanceServiceClient(hc, base, with)
	c.Images = gantryv1connect.NewImageServiceClient(hc, base, with)
	c.Volumes = gantryv1connect.NewVolumeServiceClient(hc, base, with)
	c.Networks = gantryv1connect.NewNetworkServiceClient(hc, base, with)
	c.Secrets = gantryv1connect.NewSecretServiceClient(hc, base, with)
	c.Configs = gantryv1connect.NewConfigServiceClient(hc, base, with)
	c.System = gantryv1connect.NewSystemServiceClient(hc, base, with)
	c.Cluster = gantryv1connect.NewClusterServiceClient(hc, base, with)
	c.Nodes = gantryv1connect.NewNodeAdminServiceClient(hc, base, with)
	c.Recovery = gantryv1connect.NewRecoveryServiceClient(hc, base, with)
	c.Operations = gantryv1connect.NewOperationServiceClient(hc, base, with)
	c.Explain = gantryv1connect.NewExplainServiceClient(hc, base, with)
	return c, nil
}

// Host returns the address the client was made with.
func (c *Client) Host() string { return c.host }

// Close drops idle connections. Calls under way are not touched.
func (c *Client) Close() { c.transport.CloseIdleConnections() }

// newTransport speaks HTTP/2 without TLS and without an upgrade, so that both directions of a stream are open at once.
func newTransport(network, address string, timeout time.Duration) *http.Transport {
	dialer := &net.Dialer{Timeout: timeout}
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Transport{
		Protocols:          protocols,
		DisableCompression: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, network, address)
		},
	}
}

// parseHost splits a host into what net.Dial takes.
func parseHost(host string) (network, address string, err error) {
	bad := func(why string) error {
		return fault.New(fault.Invalid, "host %q %s", host, why).WithHint("use unix:///path/to/socket or tcp://host:port")
	}
	u, err := url.Parse(host)
	if err != nil {
		return "", "", bad("is not an address")
	}
	switch u.Scheme {
	case "unix":
		path := strings.TrimPrefix(host, "unix://")
		if !strings.HasPrefix(path, "/") {
			return "", "", bad("has no absolute path")
		}
		return "unix", path, nil
	case "tcp":
		if u.Port() == "" || (u.Path != "" && u.Path != "/") {
			return "", "", bad("has no port, or more than a port")
		}
		return "tcp", u.Host, nil
	}
	return "", "", bad("has an unknown scheme")
}
