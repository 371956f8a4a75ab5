package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/internal/atomicfile"
)

// Keeper holds a machine's certificate, its key and the roots it trusts, in files of its own directory.
type Keeper struct {
	dir string

	mu      sync.Mutex
	cert    tls.Certificate // leaf and the roots, so that a joining machine can find the root its token names
	leaf    *x509.Certificate
	roots   *x509.CertPool
	rootPEM []byte
	changed chan struct{} // closed and replaced with every new certificate
}

// The keeper's files. Certificate and key are one file, so that no crash parts them.
const (
	pairFile = "machine.pem"
	rootFile = "roots.pem"
)

// OpenKeeper reads the files in dir; a machine that has none gets a NotFound fault.
func OpenKeeper(dir string) (*Keeper, error) {
	k := &Keeper{dir: dir, changed: make(chan struct{})}
	var texts [2][]byte
	for i, name := range []string{pairFile, rootFile} {
		b, err := atomicfile.Read(filepath.Join(dir, name))
		if fault.Is(err, fault.Corrupt) {
			return nil, fault.Wrap(fault.Corrupt, err, "this machine's certificate is damaged").
				WithHint("put %s back from your backup; or remove the node from its cluster, empty --root and join again", filepath.Join(dir, name))
		}
		if errors.Is(err, os.ErrNotExist) {
			return nil, fault.New(fault.NotFound, "this machine has no certificate in %s", dir)
		}
		if err != nil {
			return nil, fault.Wrap(fault.Unavailable, err, "cannot read this machine's certificate")
		}
		texts[i] = b
	}
	return k, k.use(texts[0], texts[1])
}

// NewKeeper writes what a machine was given and opens it.
func NewKeeper(dir string, cert, key, roots []byte) (*Keeper, error) {
	k := &Keeper{dir: dir, changed: make(chan struct{})}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot make the directory %s", dir)
	}
	return k, k.Replace(cert, key, roots)
}

// Replace puts a new certificate into force, all in PEM. One that other machines would refuse now is refused, and the one before
// it stays.
func (k *Keeper) Replace(cert, key, roots []byte) error {
	pair := append(append([]byte{}, cert...), key...)
	probe := &Keeper{changed: make(chan struct{})}
	if err := probe.use(pair, roots); err != nil {
		return err
	}
	if err := probe.holds(time.Now()); err != nil {
		return err
	}
	// The roots go first: a machine that trusts more than its certificate needs is whole, one that trusts less is cut off.
	for _, f := range []struct {
		name string
		text []byte
	}{{rootFile, roots}, {pairFile, pair}} {
		if err := atomicfile.Write(filepath.Join(k.dir, f.name), f.text, 0o600); err != nil {
			return fault.Wrap(fault.Unavailable, err, "cannot keep this machine's certificate")
		}
	}
	return k.use(pair, roots)
}

func (k *Keeper) use(text, roots []byte) error {
	pair, err := tls.X509KeyPair(text, text)
	if err != nil {
		return fault.Wrap(fault.Corrupt, err, "this machine's certificate and key do not fit")
	}
	certs, err := decodeCertificates(roots)
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	for _, c := range certs {
		if selfSigned(c) {
			pool.AddCert(c)
		}
		pair.Certificate = append(pair.Certificate, c.Raw)
	}
	leaf, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		return fault.Wrap(fault.Corrupt, err, "this machine's certificate cannot be read")
	}
	pair.Leaf = leaf
	k.mu.Lock()
	defer k.mu.Unlock()
	k.cert, k.leaf, k.roots, k.rootPEM = pair, leaf, pool, roots
	close(k.changed)
	k.changed = make(chan struct{})
	return nil
}

// holds refuses a certificate that is not good at that time, or under the roots beside it. Whoever made it may have a wrong clock.
func (k *Keeper) holds(now time.Time) error {
	const hint = "is the clock right here, and on the server that leads? timedatectl, there: gantry cluster status; it is asked for again"
	switch begins, ends := k.leaf.NotBefore, k.leaf.NotAfter; {
	case now.Before(begins):
		return fault.New(fault.Unavailable, "the new certificate of this machine is good from %s on, and here it is %s",
			begins.Format(time.RFC3339), now.UTC().Format(time.RFC3339)).WithHint(hint)
	case now.After(ends):
		return fault.New(fault.Unavailable, "the new certificate of this machine ended at %s, and here it is %s",
			ends.Format(time.RFC3339), now.UTC().Format(time.RFC3339)).WithHint(hint)
	}
	between := x509.NewCertPool()
	for _, der := range k.cert.Certificate[1:] {
		if c, err := x509.ParseCertificate(der); err == nil {
			between.AddCert(c)
		}
	}
	_, err := k.leaf.Verify(x509.VerifyOptions{
		Roots: k.roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "the new certificate of this machine is not good under the roots that came with it").WithHint(hint)
	}
	return nil
}

// Node is the ID that the certificate names.
func (k *Keeper) Node() string { return k.current().Subject.CommonName }

// Role is the role that the certificate names.
func (k *Keeper) Role() Role { return roleOf(k.current()) }

// Begins is from when on the certificate is good.
func (k *Keeper) Begins() time.Time { return k.current().NotBefore }

// Ends is when the certificate ends.
func (k *Keeper) Ends() time.Time { return k.current().NotAfter }

// At reports whether the certificate is for a machine at that address: etcd's members hold it against the one they call.
func (k *Keeper) At(address string) bool { return k.current().VerifyHostname(address) == nil }

// Life is how long the certificate was made for.
func (k *Keeper) Life() time.Duration {
	c := k.current()
	return c.NotAfter.Sub(c.NotBefore) - Backdate
}

// Roots is the PEM of the roots that this machine trusts.
func (k *Keeper) Roots() []byte {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.rootPEM
}

// Changed is closed when another certificate comes into force.
func (k *Keeper) Changed() <-chan struct{} {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.changed
}

// Files are the paths of certificate with key, and of the roots, for those who read them at every handshake.
func (k *Keeper) Files() (pair, roots string) {
	return filepath.Join(k.dir, pairFile), filepath.Join(k.dir, rootFile)
}

func (k *Keeper) current() *x509.Certificate {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.leaf
}

func (k *Keeper) state() (*tls.Certificate, *x509.CertPool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	c := k.cert
	return &c, k.roots
}

// ServerTLS is for listeners: callers may come without a certificate, and CallerOf tells who came. One that is shown must be
// the cluster's.
func (k *Keeper) ServerTLS() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h2", "http/1.1"},
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			cert, roots := k.state()
			return &tls.Config{
				MinVersion: tls.VersionTLS13, NextProtos: []string{"h2", "http/1.1"},
				Certificates: []tls.Certificate{*cert}, ClientCAs: roots, ClientAuth: tls.VerifyClientCertIfGiven,
				// A session that was resumed would bring back a certificate that has been replaced.
				SessionTicketsDisabled: true,
			}, nil
		},
	}
}

// ClientTLS is for calls to machines whose certificates have the name: a node's ID, AnyMachine or AnyServer.
func (k *Keeper) ClientTLS(name string) *tls.Config {
	cert, roots := k.state()
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}, ServerName: name, RootCAs: roots,
		Certificates: []tls.Certificate{*cert},
	}
}

// JoinTLS is for the first call of a machine that has only a token.
func JoinTLS(t Token) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"},
		InsecureSkipVerify: true, // VerifyConnection does it, against the root that the token names
		VerifyConnection: func(cs tls.ConnectionState) error {
			for _, c := range cs.PeerCertificates {
				if hashOf(c) != t.RootHash {
					continue
				}
				root, between := x509.NewCertPool(), x509.NewCertPool()
				root.AddCert(c)
				for _, b := range cs.PeerCertificates[1:] {
					between.AddCert(b)
				}
				_, err := cs.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: root, Intermediates: between, DNSName: AnyServer})
				return err
			}
			return fault.New(fault.Denied, "the server's root certificate is not the one that the token names").
				WithHint("the token is of another cluster, or something stands between; make a new one: gantry cluster token create")
		},
	}
}

// Caller is a machine that calls.
type Caller struct {
	Node string
	Role Role
}

// CallerOf says which machine sent the request; false if it showed no certificate.
func CallerOf(r *http.Request) (Caller, bool) {
	if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
		return Caller{}, false
	}
	leaf := r.TLS.PeerCertificates[0]
	return Caller{Node: leaf.Subject.CommonName, Role: roleOf(leaf)}, true
}

type callerKey struct{}

// WithCaller notes the calling machine for handlers that see no request.
func WithCaller(ctx context.Context, c Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// CallerFrom is the machine that WithCaller noted.
func CallerFrom(ctx context.Context) (Caller, bool) {
	c, ok := ctx.Value(callerKey{}).(Caller)
	return c, ok
}

func roleOf(c *x509.Certificate) Role {
	if c != nil && len(c.Subject.OrganizationalUnit) == 1 {
		return Role(c.Subject.OrganizationalUnit[0])
	}
	return ""
}
