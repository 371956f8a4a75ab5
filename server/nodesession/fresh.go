package nodesession

import (
	"context"
	"time"
)

// introduction is how long after a server has begun to lead a daemon that knows nothing waits for other nodes to come. It is
// less than any node's patience.
const introduction = 1500 * time.Millisecond

// introduce holds back what a daemon is told first that knows nothing yet: until then its kernel keeps what the daemon before
// has put there. Where the instances of a node are that this server has not heard, only those know who have been told before.
func (s *session) introduce(ctx context.Context) {
	for time.Since(s.term.began) < introduction && s.term.misses(s.node) {
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return
		}
	}
}

// misses reports whether another node has instances and has not been heard yet.
func (t *term) misses(but *node) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, n := range t.nodes {
		if n != but && n.id != "" && n.status == nil && len(n.instances) > 0 {
			return true
		}
	}
	return false
}
