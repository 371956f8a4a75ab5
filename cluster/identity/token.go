package identity

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"strings"

	"github.com/gantryd/gantry/fault"
)

// Token admits a machine: "gantry-ROLE-ID-SECRET-ROOTHASH". The hash lets the machine know the cluster before it says anything.
type Token struct {
	Role     Role
	ID       string
	Secret   string
	RootHash string
}

// NewToken makes up a token for a cluster with that root.
func NewToken(role Role, rootHash string) Token {
	b := make([]byte, 24)
	_, _ = rand.Read(b) // never fails: crypto/rand ends the program instead
	return Token{Role: role, ID: hex.EncodeToString(b[:6]), Secret: hex.EncodeToString(b[6:]), RootHash: rootHash}
}

// String is the token as people carry it about.
func (t Token) String() string {
	return strings.Join([]string{"gantry", string(t.Role), t.ID, t.Secret, t.RootHash}, "-")
}

// Hash is what a cluster keeps of the secret.
func (t Token) Hash() []byte {
	sum := sha256.Sum256([]byte(t.Secret))
	return sum[:]
}

// Matches compares with a kept hash in constant time.
func (t Token) Matches(hash []byte) bool { return subtle.ConstantTimeCompare(t.Hash(), hash) == 1 }

// ParseToken reads what String wrote.
func ParseToken(s string) (Token, error) {
	parts := strings.Split(strings.TrimSpace(s), "-")
	bad := fault.New(fault.Invalid, "this is not a join token").
		WithHint("on a server: gantry cluster token create --role node")
	if len(parts) != 5 || parts[0] != "gantry" || len(parts[4]) != 2*sha256.Size {
		return Token{}, bad
	}
	for _, p := range parts[2:] {
		if _, err := hex.DecodeString(p); err != nil || p == "" {
			return Token{}, bad
		}
	}
	t := Token{Role: Role(parts[1]), ID: parts[2], Secret: parts[3], RootHash: parts[4]}
	if t.Role != Server && t.Role != Node {
		return Token{}, bad
	}
	return t, nil
}
