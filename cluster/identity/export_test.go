package identity

import "time"

// SignAt signs as by a clock that says now.
func SignAt(a *Authority, now time.Time, request []byte, node string, role Role, life time.Duration) ([]byte, error) {
	return a.sign(now, request, node, role, "127.0.0.1", life)
}

// NewAuthorityAt makes a root as by a clock that says now.
func NewAuthorityAt(now time.Time, cluster string) (a *Authority, roots, key []byte, err error) {
	return newAuthority(now, cluster)
}

// KeeperOf holds a certificate whether it is good or not.
func KeeperOf(cert, key, roots []byte) (*Keeper, error) {
	k := &Keeper{changed: make(chan struct{})}
	return k, k.use(append(append([]byte{}, cert...), key...), roots)
}
