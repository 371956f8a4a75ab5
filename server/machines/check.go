package machines

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"net/netip"
	"regexp"
	"strings"
	"unicode"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
)

// hostName is what a machine may be called: what host names have, so that it can stand in a table, a log and a command.
var hostName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,252}$`)

// checkJoin refuses a machine whose words about itself cannot be true, or would harm those who read them.
func checkJoin(m *gantryv1.JoinRequest) error {
	if err := checkPlace(m.Name, m.Address, m.ApiAddress); err != nil {
		return err
	}
	if len(m.Labels) > maxLabels {
		return fault.New(fault.Invalid, "a machine cannot have %d labels", len(m.Labels)).WithHint("at most %d", maxLabels)
	}
	for k, v := range m.Labels {
		if err := checkLabel(k, v); err != nil {
			return err
		}
	}
	return nil
}

// checkPlace checks what a machine is called and where it is.
func checkPlace(name, address, apiAddress string) error {
	if !hostName.MatchString(name) {
		return fault.New(fault.Invalid, "a machine cannot be called %q", name).
			WithHint("gantryd takes the machine's host name; set one of letters, digits, '.', '-' and '_'")
	}
	if _, err := netip.ParseAddr(address); err != nil {
		return fault.Wrap(fault.Invalid, err, "the machine's own address %q is no IP address", address).WithHint("gantryd --advertise ADDRESS")
	}
	if _, err := netip.ParseAddrPort(apiAddress); err != nil {
		return fault.Wrap(fault.Invalid, err, "the machine's API address %q is not ADDRESS:PORT", apiAddress)
	}
	return nil
}

const (
	maxLabels = 64
	maxLabel  = 253 // bytes of a label's name, and of its value
)

// checkLabel checks one label of a node: "name=value" has to be readable as such.
func checkLabel(name, value string) error {
	odd := func(r rune) bool { return !unicode.IsPrint(r) || r == unicode.ReplacementChar }
	separates := func(r rune) bool { return unicode.IsSpace(r) || r == '=' }
	if name == "" || len(name) > maxLabel || len(value) > maxLabel || strings.ContainsFunc(name+value, odd) || strings.ContainsFunc(name, separates) {
		return fault.New(fault.Invalid, "%.300q=%.300q cannot be a label", name, value).WithHint("gantry node label NODE rack=r1 ssd=")
	}
	return nil
}

// checkOverlayKey checks the public key by which others know a machine where traffic between them is encrypted. A key that
// another machine has would take that machine's traffic away from it.
func checkOverlayKey(nodes []*gantryv1.Node, own, key string) error {
	if key == "" {
		return nil
	}
	if b, err := base64.StdEncoding.DecodeString(key); err != nil || len(b) != 32 {
		return fault.New(fault.Invalid, "the key %.60q is not one of WireGuard", key)
	}
	for _, n := range nodes {
		if n.Meta.Key != own && n.OverlayKey == key {
			return fault.New(fault.Conflict, "node %s has this machine's overlay key already", n.Name).
				WithHint("is this machine a copy of that one? empty --root here and join again")
		}
	}
	return nil
}

// placeFree refuses an API address that another machine has.
func placeFree(nodes []*gantryv1.Node, own, apiAddress string) error {
	for _, n := range nodes {
		if n.Meta.Key != own && n.ApiAddress == apiAddress {
			return fault.New(fault.Conflict, "node %s has the address %s already", n.Name, apiAddress).
				WithHint("if that machine is gone: gantry node rm %s", n.Meta.Key)
		}
	}
	return nil
}

// NodeID is the ID of the machine whose key is in the request. Whether it has that key the request does not say before its
// signature is checked.
func NodeID(request []byte) (string, error) {
	hash, err := keyHash(request)
	return idOf(hash), err
}

// keyHash is the SHA-256 of the public key in a request.
func keyHash(request []byte) ([]byte, error) {
	csr, err := x509.ParseCertificateRequest(request)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "the certificate request cannot be read")
	}
	sum := sha256.Sum256(csr.RawSubjectPublicKeyInfo)
	return sum[:], nil
}

const idSize = 6 // bytes

func idOf(hash []byte) string { return hex.EncodeToString(hash[:min(idSize, len(hash))]) }

// signedBy is keyHash of a machine that has shown to have the key: the public key of another one is known to all who reach it.
func signedBy(request []byte) ([]byte, error) {
	if csr, err := x509.ParseCertificateRequest(request); err == nil && csr.CheckSignature() != nil {
		return nil, fault.New(fault.Invalid, "the certificate request is not signed by the key in it")
	}
	return keyHash(request)
}
