// Package identity is who a machine is in its cluster: the cluster's certificate authority, join tokens, the certificates of
// machines and the TLS configurations made from them.
//
// A cluster begins with NewAuthority; its servers open it with OpenAuthority and Sign what machines ask for with a Request.
// A machine keeps what it was given in a Keeper, which hands out TLS configurations that always use the newest certificate.
// Keepers and authorities are safe in parallel. Certificates are ECDSA P-256, connections TLS 1.3. The package talks to no
// machine and stores nothing but the keeper's files.
package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"math/big"
	"net"
	"time"

	"github.com/gantryd/gantry/fault"
)

// Role is what a machine may do in its cluster.
type Role string

// The roles.
const (
	Server Role = "server" // holds the cluster's state, and runs instances
	Node   Role = "node"   // runs instances
)

const (
	// AnyMachine is a name that every machine's certificate has.
	AnyMachine = "node.gantry"
	// AnyServer is a name that only the certificates of servers have.
	AnyServer = "server.gantry"

	rootLife = 20 * 365 * 24 * time.Hour
	// Backdate is how far before its making a certificate begins. It covers clocks that differ between machines: an hour, as where
	// one keeps local time.
	Backdate = time.Hour
)

// Authority signs the certificates of a cluster's machines.
type Authority struct {
	key     *ecdsa.PrivateKey
	root    *x509.Certificate
	bridges []byte // PEM of the certificates by which earlier roots vouch for this one
}

// NewAuthority makes a root for a cluster. It returns the PEM of the root and of its key besides.
func NewAuthority(cluster string) (a *Authority, roots, key []byte, err error) {
	return newAuthority(time.Now(), cluster)
}

func newAuthority(now time.Time, cluster string) (a *Authority, roots, key []byte, err error) {
	signer, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, nil, fault.Wrap(fault.Internal, err, "cannot make a key")
	}
	number := serial()
	template := &x509.Certificate{
		SerialNumber: number, Subject: pkix.Name{CommonName: "gantry cluster " + cluster, SerialNumber: number.Text(16)},
		NotBefore: now.Add(-Backdate), NotAfter: now.Add(rootLife),
		IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, signer.Public(), signer)
	if err != nil {
		return nil, nil, nil, fault.Wrap(fault.Internal, err, "cannot make the cluster's root certificate")
	}
	if key, err = encodeKey(signer); err != nil {
		return nil, nil, nil, err
	}
	roots = encodeCertificate(der)
	a, err = OpenAuthority(roots, key)
	return a, roots, key, err
}

// OpenAuthority reads what NewAuthority returned; roots may hold further certificates that are trusted but do not sign.
func OpenAuthority(roots, key []byte) (*Authority, error) {
	certs, err := decodeCertificates(roots)
	if err != nil {
		return nil, err
	}
	signer, err := decodeKey(key)
	if err != nil {
		return nil, err
	}
	if !certs[0].PublicKey.(*ecdsa.PublicKey).Equal(signer.Public()) {
		return nil, fault.New(fault.Corrupt, "the cluster's signing key does not belong to its root certificate")
	}
	a := &Authority{key: signer, root: certs[0]}
	for _, c := range certs {
		if !selfSigned(c) {
			a.bridges = append(a.bridges, encodeCertificate(c.Raw)...)
		}
	}
	return a, nil
}

func selfSigned(c *x509.Certificate) bool { return c.CheckSignatureFrom(c) == nil }

// Succeed makes the root that follows this one. Machines that know only the old root accept certificates of the new one,
// because the old vouches for it (RFC 4210, section 4.4); those that know the new accept the old until the next change.
func (a *Authority) Succeed(cluster string) (next *Authority, roots, key []byte, err error) {
	next, fresh, key, err := NewAuthority(cluster)
	if err != nil {
		return nil, nil, nil, err
	}
	template := *next.root
	template.SerialNumber = serial()
	bridge, err := x509.CreateCertificate(rand.Reader, &template, a.root, next.key.Public(), a.key)
	if err != nil {
		return nil, nil, nil, fault.Wrap(fault.Internal, err, "the old root cannot vouch for the new one")
	}
	roots = append(append(fresh, encodeCertificate(bridge)...), encodeCertificate(a.root.Raw)...)
	next, err = OpenAuthority(roots, key)
	return next, roots, key, err
}

// RootHash is the SHA-256 of the signing root, in hex.
func (a *Authority) RootHash() string { return hashOf(a.root) }

func hashOf(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return hex.EncodeToString(sum[:])
}

// Sign makes the certificate of a machine. Of the request only its public key is used: who the machine is and what it may do
// is for the cluster to say.
func (a *Authority) Sign(request []byte, node string, role Role, address string, life time.Duration) ([]byte, error) {
	return a.sign(time.Now(), request, node, role, address, life)
}

func (a *Authority) sign(now time.Time, request []byte, node string, role Role, address string, life time.Duration) ([]byte, error) {
	csr, err := x509.ParseCertificateRequest(request)
	if err == nil {
		err = csr.CheckSignature()
	}
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "the certificate request cannot be read")
	}
	if role != Server && role != Node {
		return nil, fault.New(fault.Invalid, "there is no role %q", role)
	}
	template := &x509.Certificate{
		SerialNumber: serial(),
		Subject:      pkix.Name{CommonName: node, OrganizationalUnit: []string{string(role)}},
		NotBefore:    now.Add(-Backdate), NotAfter: now.Add(life),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		DNSNames:    []string{AnyMachine, node},
	}
	if role == Server {
		template.DNSNames = append(template.DNSNames, AnyServer)
	}
	if ip := net.ParseIP(address); ip != nil {
		template.IPAddresses = []net.IP{ip}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.root, csr.PublicKey, a.key)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "cannot sign the certificate of node %s", node)
	}
	return append(encodeCertificate(der), a.bridges...), nil
}

// Request makes a key and the request for its certificate: the key in PEM, the request in DER.
func Request() (key, request []byte, err error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fault.Wrap(fault.Internal, err, "cannot make a key")
	}
	if key, err = encodeKey(k); err != nil {
		return nil, nil, err
	}
	request, err = RequestFor(key)
	return key, request, err
}

// RequestFor makes the request for the certificate of a key that is there.
func RequestFor(key []byte) ([]byte, error) {
	k, err := decodeKey(key)
	if err != nil {
		return nil, err
	}
	request, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, k)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "cannot make a certificate request")
	}
	return request, nil
}

func serial() *big.Int {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails: crypto/rand ends the program instead
	b[0] &= 0x7f
	return new(big.Int).SetBytes(b)
}

func encodeCertificate(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func decodeCertificates(text []byte) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for rest := text; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fault.Wrap(fault.Corrupt, err, "a certificate cannot be read")
		}
		if _, ok := c.PublicKey.(*ecdsa.PublicKey); !ok {
			return nil, fault.New(fault.Corrupt, "a certificate has a key of an unknown kind")
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil, fault.New(fault.Corrupt, "a certificate is missing")
	}
	return out, nil
}

func encodeKey(k *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "cannot encode a key")
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func decodeKey(text []byte) (*ecdsa.PrivateKey, error) {
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fault.New(fault.Corrupt, "a private key is missing")
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fault.Wrap(fault.Corrupt, err, "a private key cannot be read")
	}
	key, ok := k.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fault.New(fault.Corrupt, "a private key is of an unknown kind")
	}
	return key, nil
}
