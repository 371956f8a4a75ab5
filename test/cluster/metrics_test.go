package cluster_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gantryd/gantry/test/lab"
)

// says is what a value of /metrics has to be: between the two, which may be the same.
type says struct {
	name        string
	least, most float64
}

const many = 1e18

func is(name string, v float64) says { return says{name, v, v} }

// Every machine tells of itself, the servers of the state, and the one that leads of the cluster; of what waits they say that
// it is nothing, once nothing happens.
func TestMachinesTellOfThemselves(t *testing.T) {
	c := lab.Form(t, lab.Shape{Servers: 2, Nodes: 1})
	first := c.Node(0)
	first.ImportBusybox(t)
	dir := lab.Project(t, `
name: told
services:
  web:
    image: "busybox:lab"
    command: sleep 100000
    deploy: {replicas: 3, placement: {max_replicas_per_node: 1}}
  once:
    image: "busybox:lab"
    command: "true"
    deploy: {mode: replicated-job}
`)
	first.GantryIn(t, dir, "up", "--timeout", "60s")
	for slot := range 3 {
		for name, found := range map[string]bool{"web": true, "nobody.gantry": false} {
			if r := first.TryIn(dir, "exec", fmt.Sprint("web.", slot+1), "nslookup", name); (r.Code == 0) != found {
				t.Errorf("web.%d asks for %s: exit %d: %s%s", slot+1, name, r.Code, r.Stdout, r.Stderr)
			}
		}
	}
	leader := c.Leader(t)
	for _, n := range c.Nodes() {
		want, without := ofMachine(), []string(nil)
		switch {
		case n == c.Node(2):
			without = []string{"etcd_", "gantry_store_", "gantry_cluster_", "gantry_schedule_", "gantry_server_", "gantry_job_"}
		case n == leader:
			want = slices.Concat(want, ofServer(1), ofLeader())
		default:
			want = append(slices.Concat(want, ofServer(0)), is("gantry_server_sessions", 0), is(`gantry_cluster_nodes{state="unknown"}`, 3))
		}
		lab.Eventually(t, 30*time.Second, n.Name()+" tells what it should", func() error { return tells(n, want, without) })
	}
}

// tells reports what is wrong with the metrics of a machine: values that are not there or not right, and others that it can
// know nothing of.
func tells(n *lab.Node, want []says, without []string) error {
	got, err := n.Metrics()
	if err != nil {
		return err
	}
	var wrong []string
	for _, w := range want {
		if v, ok := got[w.name]; !ok || v < w.least || v > w.most {
			wrong = append(wrong, fmt.Sprintf("%s is %v (there: %v), want %v to %v", w.name, v, ok, w.least, w.most))
		}
	}
	for name := range got {
		if slices.ContainsFunc(without, func(prefix string) bool { return strings.HasPrefix(name, prefix) }) {
			wrong = append(wrong, name+" is none of its")
		}
	}
	if slices.Sort(wrong); len(wrong) > 0 {
		return fmt.Errorf("%d wrong:\n%s", len(wrong), strings.Join(wrong, "\n"))
	}
	return nil
}

// ofMachine is what every machine tells: it runs one instance, which has asked for a name that there is and one that there is not.
func ofMachine() []says {
	now := float64(time.Now().Unix())
	return []says{
		{"go_goroutines", 1, many}, {"process_resident_memory_bytes", 1, many},
		{"gantry_certificate_end_timestamp_seconds", now + 24*3600, now + 40*24*3600},
		is(`gantry_node_instances{phase="running"}`, 1), {"gantry_node_start_seconds_count", 1, many}, {"gantry_node_create_seconds_count", 1, many},
		{"gantry_node_sessions_total", 1, many}, is("gantry_node_reports_waiting", 0),
		{"gantry_network_apply_seconds_count", 1, many}, is("gantry_network_apply_failures_total", 0), is("gantry_network_changes_waiting", 0),
		{`gantry_dns_requests_total{outcome="answered"}`, 1, many}, {`gantry_dns_requests_total{outcome="not_found"}`, 1, many},
		{"gantry_dns_answer_seconds_count", 2, many}, is("gantry_dns_forwards_waiting", 0),
	}
}

// ofServer is what a server tells besides.
func ofServer(leads float64) []says {
	return []says{
		is("etcd_server_has_leader", 1), is("etcd_server_is_leader", leads), {"etcd_disk_wal_fsync_duration_seconds_count", 1, many},
		{"gantry_store_revision", 1, many}, {"gantry_store_objects{kind=\"release\"}", 2, many}, is("gantry_store_updates_waiting", 0),
		is("gantry_store_events_waiting", 0), is("gantry_cluster_unplaced_instances", 0), is("gantry_cluster_services", 2),
		is(`gantry_cluster_job_runs{state="succeeded"}`, 1),
	}
}

// ofLeader is what the server that leads tells besides.
func ofLeader() []says {
	return []says{
		is(`gantry_cluster_nodes{state="ready"}`, 3), {`gantry_cluster_instances{phase="running"}`, 3, 3},
		is("gantry_server_sessions", 3), is("gantry_server_sessions_behind", 0), is("gantry_server_session_backlog", 0),
		{"gantry_server_session_update_seconds_count", 3, many},
		{"gantry_schedule_pass_seconds_count", 1, many}, {"gantry_schedule_placed_total", 3, many}, is("gantry_schedule_waiting", 0),
		{"gantry_rollout_pass_seconds_count", 1, many}, {"gantry_rollout_queue", 0, many},
		{"gantry_job_pass_seconds_count", 1, many}, {"gantry_job_queue", 0, many}, is("gantry_job_failures_total", 0),
		is("gantry_image_copies_running", 0), {"gantry_images_lacking_copies", 0, many},
	}
}
