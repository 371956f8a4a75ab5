package silence

import (
	"testing"
	"time"
)

func TestTimesFitTogether(t *testing.T) {
	const ms = time.Millisecond
	for _, c := range []struct{ suspect, down, beat, patience, unheard time.Duration }{
		{0, 0, 666 * ms, 4000 * ms, 5000 * ms},
		{500 * ms, 600 * ms, 166 * ms, 2000 * ms, 3000 * ms},
		{1000 * ms, 2000 * ms, 333 * ms, 2000 * ms, 3000 * ms},
		{0, 2500 * ms, 666 * ms, 4000 * ms, 5000 * ms},
		{30000 * ms, 60000 * ms, 1000 * ms, 4000 * ms, 60000 * ms},
	} {
		got := After(c.suspect, c.down)
		if got.Beat.Truncate(ms) != c.beat || got.Patience != c.patience || got.Unheard != c.unheard {
			t.Errorf("suspect after %s, down after %s: %+v", c.suspect, c.down, got)
		}
		if 3*got.Beat > got.Suspect || 2*got.Beat > got.Patience || got.Patience >= got.Unheard || got.Unheard < got.Down {
			t.Errorf("suspect after %s, down after %s: the times contradict each other: %+v", c.suspect, c.down, got)
		}
	}
}
