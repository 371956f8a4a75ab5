package cli_test

import (
	"context"

	"connectrpc.com/connect"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/api/gen/gantry/v1/gantryv1connect"
	"github.com/gantryd/gantry/fault"
)

// fakeCluster is a server that has just started: at first it answers, but knows no leader.
type fakeCluster struct {
	*fake
	gantryv1connect.UnimplementedClusterServiceHandler
}

func (f fakeCluster) CreateToken(context.Context, *connect.Request[gantryv1.CreateTokenRequest]) (*connect.Response[gantryv1.CreateTokenResponse], error) {
	f.note("CreateToken")
	if len(f.seen()) < 3 {
		return answer[gantryv1.CreateTokenResponse](nil, fault.New(fault.Unavailable, "this server has not reached the others yet"))
	}
	return answer(&gantryv1.CreateTokenResponse{Address: "192.0.2.7:7450", Token: "gantry-node-t"}, nil)
}
