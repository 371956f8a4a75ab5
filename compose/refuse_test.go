package compose

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"

	"github.com/gantryd/gantry/fault"
)

// Values that stand for a refused or warned key whose shape is not a plain string.
var shaped = map[string]string{
	"jobs": "{j: {image: x, triggers: {manual: true}}}", "models": "{m: {model: x}}", "services.*.models": "[]", "services.*.develop": "{watch: []}",
	"networks.*.ipam": "{config: [{subnet: 10.0.0.0/24}]}", "networks.*.driver_opts": "{a: b}", "secrets.*.driver_opts": "{a: b}",
	"services.*.attach": "false", "services.*.cpu_count": "1", "services.*.cpu_percent": "1", "services.*.cpu_rt_period": "1",
	"services.*.cpu_rt_runtime": "1", "services.*.use_api_socket": "true", "services.*.umask": "'022'",
	"services.*.credential_spec": "{file: x}", "services.*.provider": "{type: x}", "services.*.storage_opt": "{size: 1g}",
	"services.*.gpus": "all", "services.*.post_start": "[{command: x}]", "services.*.pre_stop": "[{command: x}]", "services.*.pre_start": "[{command: x}]",
	"services.*.external_links": "[a]", "services.*.volumes_from": "[t]", "services.*.build.entitlements": "[a]", "services.*.build.no_cache_filter": "[a]",
	"services.*.build.ulimits": "{nofile: 1}", "services.*.deploy.resources.reservations.devices.[].device_ids": "['0']",
	"services.*.deploy.resources.reservations.devices.[].options": "{a: b}",
	"services.*.networks.*.driver_opts":                           "{a: b}", "services.*.networks.*.gw_priority": "1", "services.*.networks.*.priority": "1",
	"services.*.networks.*.link_local_ips": "[10.0.0.1]", "services.*.volumes.[].image": "{subpath: a}",
	"services.*.volumes.[].bind.selinux": "z", "services.*.volumes.[].volume.labels": "{a: b}", "services.*.volumes.[].bind.recursive": "enabled",
	"services.*.blkio_config.weight_device": "[{path: /dev/sda, weight: 1}]", "services.*.build.isolation": "default",
	"services.*.pull_refresh_after": "1h", "services.*.build.secrets.[].mode": "'0400'",
	"services.*.blkio_config.device_read_bps": throttle, "services.*.blkio_config.device_write_bps": throttle,
	"services.*.blkio_config.device_read_iops": throttle, "services.*.blkio_config.device_write_iops": throttle,
}

const throttle = "[{path: /dev/sda, rate: 1}]"

// Every key that the matrix refuses is refused, and every key it warns about gives a warning, by name, file and line.
func TestEveryRefusedAndWarnedKey(t *testing.T) {
	for _, e := range Matrix() {
		if e.Support == Supported || e.Path == "version" {
			continue
		}
		t.Run(e.Path, func(t *testing.T) {
			key := strings.TrimSuffix(e.Path, ".**")
			text, line := document(t, key)
			p, err := load(t, text)
			var found []string
			if e.Support == Refused {
				if !fault.Is(err, fault.Unsupported) {
					t.Fatalf("%s\nwas not refused: %v", text, err)
				}
				found = strings.Split(err.Error(), "\n")
			} else {
				if err != nil {
					t.Fatalf("%s\n%v", text, err)
				}
				for _, w := range p.Warnings {
					found = append(found, w.String())
				}
			}
			want := fmt.Sprintf("compose.yaml:%d: %s:", line, example(key))
			if !slices.ContainsFunc(found, func(s string) bool { return strings.Contains(s, want) }) {
				t.Errorf("%s\nwant %q, got %q", text, want, found)
			}
		})
	}
}

// example gives the names that document uses to a path of the matrix.
func example(key string) string {
	key = strings.ReplaceAll(key, ".[]", "[0]")
	key = strings.Replace(key, "services.*", "services.t", 1)
	return strings.ReplaceAll(strings.ReplaceAll(key, "build.args.*", "build.args.n"), "*", "n")
}

// document writes the smallest file with one key, and tells the key's line.
func document(t *testing.T, key string) (text string, line int) {
	doc := map[string]any{
		"services": map[string]any{"t": map[string]any{"image": "x", "networks": map[string]any{"n": nil}, "secrets": []any{"n"}, "configs": []any{"n"}}},
		"networks": map[string]any{"n": map[string]any{}},
		"secrets":  map[string]any{"n": map[string]any{"environment": "E"}}, "configs": map[string]any{"n": map[string]any{"content": "x"}},
	}
	v := "text"
	if s, ok := shaped[key]; ok {
		v = s
	}
	var value any
	if err := yaml.Unmarshal([]byte(v), &value); err != nil {
		t.Fatal(err)
	}
	if key == "services.*.models" {
		doc["models"], value = map[string]any{"n": map[string]any{"model": "x"}}, []any{"n"}
	}
	var set func(at any, parts []string) any
	set = func(at any, parts []string) any {
		if len(parts) == 0 {
			return value
		}
		if parts[0] == "[]" {
			item := map[string]any{"type": "volume", "target": "/d"}
			switch key {
			case "services.*.volumes.[].image":
				item["type"], item["source"] = "image", "x"
			case "services.*.volumes.[].bind.selinux", "services.*.volumes.[].bind.recursive":
				item["type"], item["source"] = "bind", "/d"
			}
			switch {
			case strings.Contains(key, ".ports."):
				item = map[string]any{"target": 80}
			case strings.Contains(key, "secrets."):
				item = map[string]any{"source": "n"}
			case strings.Contains(key, "reservations.devices."):
				item = map[string]any{"capabilities": []any{"gpu"}}
				if parts[1] != "device_ids" {
					item["count"] = 1
				}
			}
			return []any{set(item, parts[1:])}
		}
		m, ok := at.(map[string]any)
		if !ok {
			m = map[string]any{}
		}
		name := parts[0]
		if name == "*" {
			name = map[bool]string{true: "t", false: "n"}[m["t"] != nil]
		}
		if name == "build" && m["build"] == nil {
			m["build"] = map[string]any{"context": "."}
		}
		m[name] = set(m[name], parts[1:])
		return m
	}
	set(doc, strings.Split(key, "."))
	b, err := yaml.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	last := key[strings.LastIndexByte(key, '.')+1:] + ":"
	for i, l := range strings.Split(string(b), "\n") {
		if key+":" == last && strings.HasPrefix(l, last) || key+":" != last && strings.HasPrefix(strings.TrimLeft(l, " -"), last) {
			line = i + 1 // the last one: services come after what they name
		}
	}
	return string(b), line
}

func placed(text string) string {
	return "services:\n  a:\n    image: x\n    deploy:\n      placement:\n        " + text + "\n"
}

func reserved(text string) string {
	return "services:\n  a:\n    image: x\n    deploy:\n      resources:\n        reservations:\n          " + text + "\n"
}

func extended(text string) string {
	return "services:\n  a:\n    image: x\n    x-gantry:\n      " + text + "\n"
}

func jobbed(mode, key, job string) string {
	return "services:\n  a:\n    image: x\n    deploy: {mode: " + mode + "}\n    " + key + "\n    x-gantry: {job: {" + job + "}}\n"
}

func TestRefusedValues(t *testing.T) {
	for _, c := range []struct{ name, yaml, want string }{
		{"mode", "services:\n  a:\n    image: x\n    deploy:\n      mode: local\n", "compose.yaml:5: services.a.deploy.mode: not supported: the mode local"},
		{"constraint", placed("constraints: [node.role == manager, a == b]"), `compose.yaml:6: services.a.deploy.placement.constraints[1]: "a" is nothing that a machine has`},
		{"preference", placed("preferences: [{spread: rack}]"), `services.a.deploy.placement.preferences[0].spread: "rack" is nothing that a machine has`},
		{"all devices", reserved("devices: [{capabilities: [gpu], count: all}]"), "devices[0].count: not supported: all devices"},
		{"devices without a number", reserved("devices: [{capabilities: [gpu]}]"), "devices[0].count: not supported: all devices"},
		{"no devices", reserved("generic_resources: [{discrete_resource_spec: {kind: ssd, value: 0}}]"), "generic_resources[0]: 0 of \"ssd\" cannot be reserved"},
		{"strategy", extended("placement: {strategy: random}"), `compose.yaml:5: services.a.x-gantry.placement.strategy: there is no "random"`},
		{"kept apart from nobody", extended("placement: {anti_affinity: [b]}"), `there is no service "b"`},
		{"rebalance", extended("placement: {rebalance: often}"), "often is neither true nor false"},
		{"no mapping", extended("placement: spread"), "services.a.x-gantry.placement: this is not a mapping"},
		{"update strategy", extended("update: {strategy: yolo}"), `compose.yaml:5: services.a.x-gantry.update.strategy: there is no "yolo"`},
		{"canary without steps", extended("update: {strategy: canary}"), "x-gantry.update.strategy: a canary has steps"},
		{"steps of no canary", extended("update: {canary: [{count: 1}]}"), "x-gantry.update.canary: no other strategy has such steps"},
		{"empty steps", extended("update: {strategy: canary, canary: []}"), "x-gantry.update.canary: this is not a list of steps"},
		{"size of a step", extended("update: {strategy: canary, canary: [{count: 1}, {count: 1, percent: 5}]}"), "x-gantry.update.canary[1]: a step has either a count or a percent"},
		{"weight of a step", extended("update: {strategy: canary, canary: [{count: 1, weight: 101}]}"), "x-gantry.update.canary[0].weight: 101 cannot be had"},
		{"kept by nobody", extended("update: {keep: 1h}"), "x-gantry.update.keep: no other strategy keeps an old set"},
		{"rollback of a rollback", "services:\n  a:\n    image: x\n    deploy:\n      rollback_config: {failure_action: rollback}\n",
			`compose.yaml:5: services.a.deploy.rollback_config.failure_action: there is no action "rollback"`},
		{"share of failures", "services:\n  a:\n    image: x\n    deploy:\n      update_config: {max_failure_ratio: 2}\n",
			"compose.yaml:5: services.a.deploy.update_config.max_failure_ratio: 2 of all instances cannot fail"},
		{"update of a job", "services:\n  a:\n    image: x\n    deploy: {mode: replicated-job}\n    x-gantry: {update: {strategy: recreate}}\n",
			"services.a.x-gantry.update: a service of the mode replicated-job is not updated"},
		{"priority", extended("priority: 1001"), "services.a.x-gantry.priority: 1001 cannot be had"},
		{"priority as a text", extended("priority: high"), "services.a.x-gantry.priority: high cannot be had"},
		{"job of a service", extended("job: {retries: 1}"), "services.a.x-gantry.job: a service of the mode replicated is no job"},
		{"job that does not end", jobbed("replicated-job", "restart: always", ""), `services.a.restart: a job that has ended with 0 is done, and not started again as "always" would have it`},
		{"job with any", "services:\n  a:\n    image: x\n    deploy: {mode: global-job, restart_policy: {condition: any}}\n", "services.a.deploy.restart_policy.condition: a job that has ended"},
		{"schedule", jobbed("replicated-job", "", `schedule: "0 25 * * *"`), `services.a.x-gantry.job.schedule: the schedule "0 25 * * *": hour: "25" is not from 0 to 23`},
		{"time zone", jobbed("replicated-job", "", `schedule: "@daily", time_zone: Berlin`), `there is no time zone "Berlin"`},
		{"overlap of nothing", jobbed("replicated-job", "", "overlap: allow"), "services.a.x-gantry.job.overlap: there is no schedule"},
		{"overlap", jobbed("replicated-job", "", `schedule: "@daily", overlap: maybe`), `services.a.x-gantry.job.overlap: there is no "maybe"`},
		{"timeout", jobbed("replicated-job", "", "timeout: 5"), "services.a.x-gantry.job.timeout: 5 is no text"},
		{"timeout without a unit", jobbed("replicated-job", "", "timeout: '5'"), `services.a.x-gantry.job.timeout: "5" is no time`},
		{"completions", jobbed("global-job", "", "completions: 3"), "services.a.x-gantry.job.completions: a global job runs once on each node"},
		{"unknown key of a job", jobbed("replicated-job", "", "retry: 3"), "services.a.x-gantry.job.retry: there is no such key"},
		{"dnsrr", "services:\n  a:\n    image: x\n    deploy:\n      endpoint_mode: dnsrr\n", "compose.yaml:5: services.a.deploy.endpoint_mode: not supported"},
		{"network mode", "services:\n  a:\n    image: x\n    network_mode: my-bridge\n", `compose.yaml:4: services.a.network_mode: not supported: the network mode "my-bridge"`},
		{"macvlan", "services: {a: {image: x}}\nnetworks:\n  n:\n    driver: macvlan\n", "compose.yaml:4: networks.n.driver: not supported"},
		{"nfs", "services: {a: {image: x}}\nvolumes:\n  v:\n    driver_opts:\n      type: nfs\n", "compose.yaml:5: volumes.v.driver_opts.type: not supported"},
		{"volume driver", "services: {a: {image: x}}\nvolumes:\n  v:\n    driver: rexray\n", "compose.yaml:4: volumes.v.driver: not supported"},
		{"mount type", "services:\n  a:\n    image: x\n    volumes:\n      - {type: npipe, source: x, target: /y}\n", "compose.yaml:5: services.a.volumes[0].type: not supported"},
		{"second mount", "services:\n  a:\n    image: x\n    volumes:\n      - vol:/a\n      - {type: cluster, source: x, target: /y}\nvolumes: {vol: {}}", "compose.yaml:6: services.a.volumes[1].type: not supported"},
		{"log driver", "services:\n  a:\n    image: x\n    logging: {driver: gelf}\n", "compose.yaml:4: services.a.logging.driver: not supported"},
		{"runtime", "services:\n  a:\n    image: x\n    runtime: kata\n", "compose.yaml:4: services.a.runtime: not supported"},
		{"apparmor", "services:\n  a:\n    image: x\n    security_opt:\n      - apparmor=mine\n", "compose.yaml:5: services.a.security_opt[0]: not supported"},
		{"pull policy", "services:\n  a:\n    image: x\n    pull_policy: daily\n", "compose.yaml:4: services.a.pull_policy: not supported"},
		{"cdi", "services:\n  a:\n    image: x\n    devices: [nvidia.com/gpu=all]\n", "compose.yaml:4: services.a.devices[0]: not supported"},
		{"git build", "services:\n  a:\n    build:\n      context: https://github.com/a/b.git\n", "compose.yaml:4: services.a.build.context: not supported"},
		{"host range", "services:\n  a:\n    image: x\n    ports:\n      - '8000-8010:80'\n", "compose.yaml:5: services.a.ports[0].published: not supported"},
		{"sctp", "services:\n  a:\n    image: x\n    ports:\n      - '80:80'\n      - '81:81/sctp'\n", "compose.yaml:6: services.a.ports[1].protocol: not supported"},
		{"unknown key", "services:\n  a:\n    image: x\n    imgae: y\n", "compose.yaml:4: services.a.imgae: this key does not exist"},
		{"unknown x-gantry", "services:\n  a:\n    image: x\n    x-gantry:\n      versoin: 1.0.0\n", "compose.yaml:5: services.a.x-gantry.versoin: there is no such key"},
		{"bad version", "services:\n  a:\n    image: x\n    x-gantry:\n      version: '1.2'\n", `compose.yaml:5: services.a.x-gantry.version: "1.2" is not a semantic version`},
		{"version as a number", "services:\n  a:\n    image: x\n    x-gantry: {version: 1.2}\n", "is not a semantic version"},
		{"no image", "services:\n  a:\n    command: x\n", `service "a" has neither an image nor a build context`},
		{"bad image", "services:\n  a:\n    image: 'A B'\n", `compose.yaml:3: services.a.image: "A B" is not an image reference`},
		{"unknown dependency", "services:\n  a:\n    image: x\n    depends_on:\n      - b\n", `compose.yaml:5: services.a.depends_on.b: there is no service "b"`},
		{"unset secret", "services: {a: {image: x, secrets: [s]}}\nsecrets:\n  s:\n    environment: NOPE\n", `compose.yaml:4: secrets.s.environment: the variable "NOPE" is not set`},
		{"missing secret", "services: {a: {image: x, secrets: [s]}}\nsecrets:\n  s:\n    file: ./none\n", "compose.yaml:4: secrets.s.file: the file"},
		{"large config", "services: {a: {image: x, configs: [s]}}\nconfigs:\n  s:\n    content: " + strings.Repeat("x", maxContent+1), "compose.yaml:3: configs.s: the content is larger than 500 KiB"},
		{"required variable", "services:\n  a:\n    image: ${IMAGE:?name one}\n", "name one"},
		{"mount at root", "services:\n  a:\n    image: x\n    volumes: ['vol:/']\nvolumes: {vol: {}}\n", "is not a place to mount at"},
		{"subpath out", "services:\n  a:\n    image: x\n    volumes:\n      - {type: volume, source: v, target: /d, volume: {subpath: ../x}}\nvolumes: {v: {}}\n", "leaves the volume"},
		{"no memory", "services:\n  a:\n    image: x\n    mem_limit: 1m\n", "compose.yaml:4: services.a.mem_limit: no process starts in 1048576 bytes"},
		{"in an extended file", "services:\n  a:\n    extends: {file: base.yaml, service: b}\n", "does not exist"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := load(t, c.yaml)
			if err == nil || !strings.Contains(err.Error(), c.want) || fault.HintOf(err) == "" {
				t.Fatalf("want %q, got: %v (hint %q)", c.want, err, fault.HintOf(err))
			}
		})
	}
}

// Refused keys are found where they are written: in the extended file, the included one or the override.
func TestLinesAcrossFiles(t *testing.T) {
	dir := write(t, map[string]string{
		"compose.yaml":          "include: [sub/inc.yaml]\nservices:\n  a:\n    extends: {file: base.yaml, service: b}\n    image: x\n",
		"compose.override.yaml": "services:\n  a:\n    runtime: kata\n    attach: false\n",
		"base.yaml":             "services:\n  b:\n    image: y\n    umask: '022'\n",
		"sub/inc.yaml":          "services:\n  c:\n    image: z\n    use_api_socket: true\n",
	})
	_, err := Load(t.Context(), Options{ProjectDir: dir})
	if err == nil {
		t.Fatal("was loaded")
	}
	for _, want := range []string{"base.yaml:4: services.a.umask", "sub/inc.yaml:4: services.c.use_api_socket"} {
		if !strings.Contains(err.Error(), filepath.Join(dir, want)) {
			t.Errorf("%q is missing in:\n%v", want, err)
		}
	}
}

func TestResetTakesARefusedKeyAway(t *testing.T) {
	dir := write(t, map[string]string{
		"compose.yaml": "services:\n  a:\n    image: x\n    use_api_socket: true\n",
		"fix.yaml":     "services:\n  a:\n    use_api_socket: !reset null\n",
	})
	p := mustLoad(t, Options{Files: []string{filepath.Join(dir, "compose.yaml"), filepath.Join(dir, "fix.yaml")}})
	wantService(t, p, "a", fmt.Sprintf(`{"container": {"image": "x", "resources": {}, "network": {"kind": "KIND_BRIDGE", "attachments": [{"network": "production/%s/default"}]}}, "replicas": 1, "mode": "replicated"}`, p.Name))
}
