package server

import (
	"testing"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/store"
)

// TestWhatIsGoneIsNotFollowedForEver: jobs make instances for as long as somebody watches.
func TestWhatIsGoneIsNotFollowedForEver(t *testing.T) {
	f := &following{followers: map[string]*follower{"there": {}, "gone": {}, "read to its end": {busy: true}}}
	f.forget([]*gantryv1.Instance{{Meta: store.NewMeta("there")}})
	if len(f.followers) != 2 || f.followers["gone"] != nil {
		t.Errorf("followed: %v", f.followers)
	}
}
