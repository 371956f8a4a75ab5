package daemon

import (
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/cluster/identity"
	"github.com/gantryd/gantry/engine/image/peer"
	"github.com/gantryd/gantry/internal/atomicfile"
	"github.com/gantryd/gantry/store"
	"github.com/gantryd/gantry/test/hostile"
)

// Who calls, and by which way.
const (
	operator   = "an operator at the socket"
	itself     = "the machine itself at root's socket"
	serverCert = "a server"
	passedOn   = "a server that passes on an operator's call"
	forNode    = "a server that passes on a node's call"
	forRemoved = "a server that passes on a removed machine's call"
	nodeCert   = "a node"
	nodeForges = "a node that says it calls for a server"
	nodePasses = "a node that says it passes on an operator's call"
	demoted    = "a node with the certificate of a server"
	removed    = "a machine that was removed, with the certificate of a server"
	nobody     = "anybody without a certificate"
	foreign    = "a server of another cluster"
)

// access says who may call what. Whoever is not named may not. A method that is not here fails the test.
func access() map[string][]string {
	anybody := []string{serverCert, forNode, forRemoved, nodeCert, nodeForges, demoted, removed, nobody}
	machine := []string{itself, serverCert, forNode, nodeCert, nodeForges, demoted}
	servers := []string{itself, serverCert}
	operators := []string{operator, passedOn}
	images := append(slices.Clone(operators), itself, serverCert, forNode)
	node := []string{itself, serverCert, forNode} // a server is trusted with every node
	out := map[string][]string{}
	for list, who := range map[string][]string{
		`AppService Plan Apply List Get Remove Watch Scale Rollback SetStopped Restart ListReleases
		InstanceService Create List Inspect Start Stop Restart Remove Kill Pause Unpause Wait Logs Exec Attach Stats Top Diff CopyTo CopyFrom Events
		OperationService List Get Watch Pause Resume Abort
		VolumeService List Create Inspect Remove Prune
		NetworkService List Inspect
		SecretService List Create Remove
		ConfigService List Create Remove
		SystemService Version Info DiskUsage Environments SetEnvironment
		ExplainService Explain
		ClusterService Status CreateToken ListTokens RevokeToken Backup RotateCA Configure
		NodeAdminService List Get Label SetAvailability Promote Demote Remove`: operators,
		`ImageService List Inspect Pull Push Import Export Bootstrap Tag Remove Prune Build PruneBuildCache`:                       images,
		`NodeService Logs Exec Attach Stats Kill Pause Unpause Top Diff CopyTo CopyFrom InspectVolume RemoveVolume Info DiskUsage`: node,
		`RecoveryService Restore ForceNewCluster`: {operator},
		`JoinService Join`:                        anybody,
		`MachineService Describe Renew`:           machine,
		`MachineService AddMember PromoteMember`:  servers,
		`NodeImageService Locate Announce FindName
		NodeSessionService Session`: machine,
	} {
		for line := range strings.Lines(list) {
			words := strings.Fields(line)
			for _, method := range words[1:] {
				out["/gantry.v1."+words[0]+"/"+method] = who
			}
		}
	}
	return out
}

// doors are the ways to the rig by who takes them, and the machine that it makes a caller.
func (r *rig) doors() map[string]door {
	other, theirs, _, err := identity.NewAuthority("other")
	check(r.t, err)
	_, roots := keeper(r.t, other, theirs, aServer, identity.Server).Files()
	check(r.t, atomicfile.Write(roots, r.roots, 0o600)) // it believes us
	stranger, err := identity.OpenKeeper(filepath.Dir(roots))
	check(r.t, err)
	server, node := r.as(aServer, identity.Server), r.as(aNode, identity.Node)
	return map[string]door{
		operator: r.socket("api.sock"), itself: r.socket("inner.sock"),
		serverCert: server, passedOn: server.under(proxied),
		forNode: server.saying(callerHeader, aNode), forRemoved: server.saying(callerHeader, aRemoved),
		nodeCert: node, nodeForges: node.saying(callerHeader, aServer), nodePasses: node.under(proxied),
		demoted: r.as(aDemoted, identity.Server), removed: r.as(aRemoved, identity.Server),
		nobody: r.anonymous(), foreign: r.with(stranger.Client(identity.AnyServer)),
	}
}

// callerOf is the machine as which a caller counts.
func (r *rig) callerOf(who string) string {
	return map[string]string{
		itself: r.own, serverCert: aServer, forNode: aNode, nodeCert: aNode, nodeForges: aNode, demoted: aDemoted,
		removed: aRemoved, forRemoved: aRemoved,
	}[who]
}

// TestWhoMayCallWhat holds every method against every kind of caller.
func TestWhoMayCallWhat(t *testing.T) {
	r := newRig(t)
	rules, all := access(), hostile.Methods()
	for procedure := range rules {
		if all[procedure] == nil {
			t.Errorf("there is no method %s", procedure)
		}
	}
	var wg sync.WaitGroup
	slots := make(chan struct{}, 64)
	for who, d := range r.doors() {
		for procedure, m := range all {
			may, ruled := rules[procedure]
			if !ruled {
				t.Errorf("nobody has said who may call %s", procedure)
				continue
			}
			slots <- struct{}{}
			wg.Go(func() {
				defer func() { <-slots }()
				r.mayCall(who, d, procedure, m, slices.Contains(may, who))
			})
		}
	}
	wg.Wait()
}

func (r *rig) mayCall(who string, d door, procedure string, m protoreflect.MethodDescriptor, may bool) {
	var msg proto.Message = dynamicpb.NewMessage(m.Input())
	switch m.Input().FullName() {
	case "gantry.v1.NodeReport":
		msg = &gantryv1.NodeReport{Hello: &gantryv1.NodeHello{Node: r.callerOf(who)}}
	case "gantry.v1.PromoteMemberRequest":
		n, _ := store.Get[*gantryv1.Node](r.serving.store.Snapshot(), r.callerOf(who))
		msg = &gantryv1.PromoteMemberRequest{Member: n.GetMember()}
	}
	patience := time.Minute
	if may && goesOn(procedure) {
		patience = streamPatience
	}
	got := r.call(d, procedure, m, patience, msg)
	allowed := got.reached && got.Code != connect.CodePermissionDenied && got.Err == nil
	if allowed != may {
		r.t.Errorf("%s calls %s: allowed %v: %+v", who, procedure, allowed, got)
	}
}

// goesOn names the methods whose streams do not end by themselves.
func goesOn(procedure string) bool {
	switch path.Base(procedure) {
	case "Watch", "Events", "Session", "Stats":
		return true
	}
	return false
}

// TestOtherPaths: what is served besides the API.
func TestOtherPaths(t *testing.T) {
	r := newRig(t)
	blob := peer.Path + "sha256:" + strings.Repeat("0", 64)
	cluster := []string{serverCert, forNode, nodeCert, nodeForges, demoted}
	var wg sync.WaitGroup
	for at, may := range map[string][]string{
		metricsPath: append([]string{operator}, cluster...),
		blob:        cluster,
		// Nothing is found by another spelling.
		"//gantry.v1.AppService/List":                       nil,
		"/gantry.v1.AppService/List/":                       nil,
		"/api/../api/gantry.v1.AppService/List":             nil,
		"/api/api/gantry.v1.AppService/List":                nil,
		"/gantry.v1.nodeservice/Info":                       nil,
		"/":                                                 nil,
		"/gantry.v1.NodeService%2fInfo":                     nil,
		"/gantry.v1.JoinService/../gantry.v1.NodeService/x": nil,
	} {
		for who, d := range r.doors() {
			wg.Go(func() {
				got := r.post(d, at, nil)
				// A handler of services that does not know the method is no way to one.
				allowed := got.reached && got.Err == nil && got.Code == 0
				if allowed != slices.Contains(may, who) {
					t.Errorf("%s calls %s: allowed %v: %+v", who, at, allowed, got)
				}
			})
		}
	}
	wg.Wait()
}

// TestNobodySpeaksForAnother: a session is of the machine whose certificate opens it.
func TestNobodySpeaksForAnother(t *testing.T) {
	r := newRig(t)
	session := hostile.Methods()["/gantry.v1.NodeSessionService/Session"]
	others := map[string]string{nodeCert: aServer, nodeForges: aServer, serverCert: aNode, demoted: aNode, itself: aNode, forNode: aServer}
	doors := r.doors()
	for _, who := range slices.Sorted(maps.Keys(others)) {
		msg := &gantryv1.NodeReport{Hello: &gantryv1.NodeHello{Node: others[who]}}
		got := r.call(doors[who], "/gantry.v1.NodeSessionService/Session", session, time.Minute, msg)
		if got.Code != connect.CodePermissionDenied {
			t.Errorf("%s has a session of another machine: %+v", who, got)
		}
	}
}
