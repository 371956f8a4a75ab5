package daemon

import (
	"crypto/tls"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/gantryd/gantry/fault"
)

// registryTLS is how the registry is spoken to: with the certificate of the files it was given, on a loopback address without
// TLS (nil), elsewhere with this machine's own certificate, pair. A password never goes over a network in the clear.
func registryTLS(address, certificate, key, pair string) (*tls.Config, error) {
	switch {
	case (certificate == "") != (key == ""):
		return nil, fault.New(fault.Invalid, "--registry-certificate and --registry-key belong together")
	case certificate == "" && isLoopback(address):
		return nil, nil
	case certificate == "":
		certificate, key = pair, pair
	}
	f := &keyFiles{certificate: certificate, key: key}
	if _, err := f.get(nil); err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "the registry's certificate cannot be used").
			WithHint("give PEM files that belong together with --registry-certificate and --registry-key")
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}, GetCertificate: f.get}, nil
}

// isLoopback reports that an address host:port is reached from this machine alone.
func isLoopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

// keyFiles is a certificate on disk that somebody else renews.
type keyFiles struct {
	certificate, key string

	mu   sync.Mutex
	read time.Time // of the certificate's file when it was read
	have *tls.Certificate
}

// get reads the files again once they have changed. As long as they do not go together, what was read before is used.
func (f *keyFiles) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	info, err := os.Stat(f.certificate)
	if err == nil && f.have != nil && info.ModTime().Equal(f.read) {
		return f.have, nil
	}
	var c tls.Certificate
	if err == nil {
		c, err = tls.LoadX509KeyPair(f.certificate, f.key)
	}
	if err == nil {
		f.have, f.read = &c, info.ModTime()
	}
	if f.have == nil {
		return nil, err
	}
	return f.have, nil
}
