package daemon

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/gantryd/gantry/cluster/identity"
	"github.com/gantryd/gantry/fault"
)

// certify writes a pair for 127.0.0.1 under a root of its own, and returns the root.
func certify(t *testing.T, path string) *x509.CertPool {
	t.Helper()
	authority, roots, _, err := identity.NewAuthority("test")
	if err != nil {
		t.Fatal(err)
	}
	key, request, err := identity.Request()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := authority.Sign(request, "n1", identity.Node, "127.0.0.1", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, append(cert, key...), 0o600); err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if block, _ := pem.Decode(roots); block == nil || !pool.AppendCertsFromPEM(roots) {
		t.Fatal("the roots are no certificates")
	}
	return pool
}

func TestTheRegistryIsEncryptedOffTheLoopback(t *testing.T) {
	pair := filepath.Join(t.TempDir(), "machine.pem")
	certify(t, pair)
	for address, encrypted := range map[string]bool{
		"127.0.0.1:5050": false, "[::1]:5050": false, "localhost:5050": false,
		"10.0.0.1:5050": true, ":5050": true, "0.0.0.0:5050": true, "registry.example:443": true,
	} {
		config, err := registryTLS(address, "", "", pair)
		if err != nil || (config != nil) != encrypted {
			t.Errorf("%s: %v, %v", address, config, err)
		}
	}
	if config, err := registryTLS("127.0.0.1:5050", pair, pair, ""); err != nil || config == nil {
		t.Errorf("files on the loopback address: %v, %v", config, err)
	}
	for _, files := range [][2]string{{pair, ""}, {"", pair}, {pair, "/nowhere"}, {"/nowhere", "/nowhere"}} {
		if _, err := registryTLS("127.0.0.1:5050", files[0], files[1], pair); !fault.Is(err, fault.Invalid) {
			t.Errorf("%v: %v", files, err)
		}
	}
}

func TestARenewedCertificateOfTheRegistryIsUsed(t *testing.T) {
	pair := filepath.Join(t.TempDir(), "machine.pem")
	first := certify(t, pair)
	config, err := registryTLS("10.0.0.1:5050", "", "", pair)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	server := &http.Server{Handler: http.NotFoundHandler()}
	go func() { served <- server.Serve(tls.NewListener(l, config)) }()
	t.Cleanup(func() { _ = server.Close(); <-served })
	trusted := func(roots *x509.CertPool) bool {
		t.Helper()
		c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: roots}}}
		resp, err := c.Get("https://" + l.Addr().String() + "/v2/")
		if err == nil {
			_ = resp.Body.Close()
		}
		return err == nil
	}
	if !trusted(first) || trusted(x509.NewCertPool()) {
		t.Fatal("the first certificate is not the one that is shown")
	}
	if err := os.WriteFile(pair, []byte("half a f"), 0o600); err != nil {
		t.Fatal(err)
	}
	if !trusted(first) {
		t.Fatal("a broken file has taken the certificate away")
	}
	second := certify(t, pair)
	if err := os.Chtimes(pair, time.Time{}, time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if !trusted(second) || trusted(first) {
		t.Error("the new certificate is not used")
	}
}
