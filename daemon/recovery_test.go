package daemon

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"connectrpc.com/connect"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/api/gen/gantry/v1/gantryv1connect"
)

// TestRecoveryIsAudited: what replaces the whole state is written down, as every change is.
func TestRecoveryIsAudited(t *testing.T) {
	r := newRig(t)
	var log strings.Builder
	r.front.role.d.Logger = slog.New(slog.NewTextHandler(&log, nil))
	s := httptest.NewServer(newFront(r.front.machine, r.front.role, r.nothing(), nil, http.NotFoundHandler()).recovery)
	defer s.Close()
	_, err := gantryv1connect.NewRecoveryServiceClient(s.Client(), s.URL).ForceNewCluster(t.Context(), connect.NewRequest(&gantryv1.ForceNewClusterRequest{}))
	if err == nil || !strings.Contains(log.String(), "msg=audit by=unknown call=RecoveryService/ForceNewCluster result=conflict") {
		t.Errorf("%v, log %q", err, log.String())
	}
}
