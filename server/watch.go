package server

import (
	"context"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/store"
)

// Looking at an app that took longer than watchSlow is not done again before watchRest times as long.
const (
	watchSlow = 2 * time.Millisecond
	watchRest = 10
)

// Watch implements the API.
func (h *apps) Watch(ctx context.Context, req *connect.Request[gantryv1.GetAppRequest], stream *connect.ServerStream[gantryv1.AppView]) error {
	sub, err := h.s.store.ViewAndWatch(func(*store.ReadTx) error { return nil })
	if err != nil {
		return err
	}
	defer sub.Close()
	w := &appWatch{env: req.Msg.Environment, app: req.Msg.App}
	for {
		begun := time.Now()
		if v := w.look(h.s.store.Snapshot()); v != nil {
			if err := stream.Send(v); err != nil {
				return err
			}
		}
		if took := time.Since(begun); took > watchSlow {
			if err := pause(ctx, watchRest*took); err != nil {
				return err
			}
		}
		for concerned := false; !concerned; {
			events, err := sub.Next(ctx)
			if err != nil {
				return err
			}
			for _, ev := range events {
				concerned = concerned || w.concerns(ev)
			}
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// appWatch is what a watcher of an app has been sent.
type appWatch struct {
	env, app  string
	last      *gantryv1.AppView
	instances map[string]bool
}

// look returns the app as it is now; nil if that has been sent.
func (w *appWatch) look(snap *store.ReadTx) *gantryv1.AppView {
	v := oneApp(snap, w.env+"/"+w.app)
	if w.last != nil && sameView(w.last, v) {
		return nil
	}
	w.last, w.instances = v, map[string]bool{}
	for _, s := range v.Services {
		for _, i := range s.Instances {
			w.instances[i.Instance.Meta.Key] = true
		}
	}
	return v
}

// concerns reports that an event may have changed the app.
func (w *appWatch) concerns(ev store.Event) bool {
	o := ev.New
	if o == nil {
		o = ev.Old
	}
	switch o := o.(type) {
	case *gantryv1.App:
		return o.Environment == w.env && o.Name == w.app
	case *gantryv1.Service:
		return o.Environment == w.env && o.App == w.app
	case *gantryv1.Instance:
		return o.Environment == w.env && o.App == w.app
	case *gantryv1.InstanceStatus:
		return w.instances[o.Meta.Key]
	case *gantryv1.Operation, *gantryv1.Node:
		return true
	case *gantryv1.NodeStatus:
		was, _ := ev.Old.(*gantryv1.NodeStatus)
		return ev.New == nil || was.GetState() != o.State
	}
	return false
}

// sameView compares views but for the revision, which grows with changes to other apps too.
func sameView(a, b *gantryv1.AppView) bool {
	if len(a.Services) != len(b.Services) || !proto.Equal(a.App, b.App) {
		return false
	}
	for i := range a.Services {
		if !proto.Equal(a.Services[i], b.Services[i]) {
			return false
		}
	}
	return true
}
