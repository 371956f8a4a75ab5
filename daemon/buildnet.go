package daemon

import (
	"context"

	"github.com/gantryd/gantry/internal/ids"
	"github.com/gantryd/gantry/network"
)

// buildNetwork gives every step of a build a link of its own, so that it reaches the outside and nothing of the machine's.
// What a killed daemon left is freed with the links of instances that are gone.
type buildNetwork struct{ network *network.Network }

// Namespace is part of build.Network.
func (b buildNetwork) Namespace(ctx context.Context) (path string, release func() error, err error) {
	id := "build-" + ids.New()
	at, err := b.network.Attach(ctx, id, network.AttachOptions{})
	if err != nil {
		return "", nil, err
	}
	return at.Netns, func() error { return b.network.Detach(context.WithoutCancel(ctx), id) }, nil
}
