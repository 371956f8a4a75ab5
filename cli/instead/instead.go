// Package instead knows what people type who come from Docker and Compose and that Gantry does not have, and what to do in its
// place. Everything named here is refused all the same: nothing is ignored, and nothing is done by halves.
//
// Command and Flag answer with a hint. Both only read and are safe in parallel.
package instead

import "strings"

// Command says what to type in place of "gantry WORDS...".
func Command(words []string) (hint string, ok bool) {
	if len(words) == 0 {
		return "", false
	}
	for n := min(2, len(words)); n > 0; n-- {
		if hint, ok = commands()[strings.Join(words[:n], " ")]; ok {
			return hint, true
		}
	}
	switch words[0] {
	case "compose", "container", "docker":
		if len(words) > 1 {
			if hint, ok = Command(words[1:]); !ok {
				hint = "gantry " + words[1]
			}
			return hint, true
		}
		return "gantry --help", true
	}
	return "", false
}

// Flag says what to do in place of a flag of a command ("gantry up", "--attach"; "-V" for a short one).
func Flag(command, flag string) (hint string, ok bool) {
	command = strings.TrimPrefix(command, "gantry ")
	for _, c := range []string{command, "*"} {
		if hint, ok = flags()[c+" "+flag]; ok {
			return hint, true
		}
	}
	return "", false
}

func commands() map[string]string {
	return map[string]string{
		"builder prune":      "gantry system prune",
		"buildx":             "gantry build",
		"buildx build":       "gantry build",
		"commit":             "write a Dockerfile and use gantry build; gantry diff shows what has changed, gantry cp gets it out",
		"compose config":     "gantry convert",
		"config inspect":     "gantry config ls -o json; the content is in the containers that use it",
		"container ls":       "gantry ps",
		"container list":     "gantry ps",
		"container prune":    "gantry system prune",
		"context":            "choose the daemon with --host or GANTRY_HOST",
		"create":             "gantry run -d; nothing is made without being started",
		"deploy":             "gantry up",
		"docker compose":     "gantry up, ps, logs, down, …: the verbs of Compose stand alone",
		"export":             "gantry cp CONTAINER:/ - writes a container's files as a tar stream; gantry image export is for images",
		"history":            "gantry image history",
		"image build":        "gantry build",
		"image load":         "gantry image import",
		"image save":         "gantry image export",
		"images":             "gantry image ls",
		"import":             "gantry image import",
		"info":               "gantry system info",
		"list":               "gantry ls",
		"load":               "gantry image import FILE",
		"logout":             "remove the registry from ~/.docker/config.json",
		"manifest":           "gantry image inspect",
		"network connect":    "write the network into the Compose file and run gantry up, or gantry run --network NAME",
		"network create":     "networks come from Compose files: write it below networks: and run gantry up",
		"network disconnect": "take the network out of the Compose file and run gantry up",
		"network prune":      "networks go with the app that made them: gantry down",
		"network rm":         "networks go with the app that made them: gantry down",
		"plugin":             "Gantry has no plug-ins",
		"rename":             "a container keeps its name: gantry rm, and gantry run --name",
		"rmi":                "gantry image rm",
		"save":               "gantry image export -o FILE IMAGE",
		"search":             "look on the registry's own page; gantry image pull NAME",
		"secret inspect":     "gantry secret ls -o json; the content is never shown again",
		"service":            "services have the verbs themselves: gantry ps, logs, scale, rollback SERVICE",
		"service ls":         "gantry ls, and gantry ps",
		"service ps":         "gantry ps SERVICE",
		"service logs":       "gantry logs SERVICE",
		"service scale":      "gantry scale SERVICE=N",
		"service update":     "change the Compose file and run gantry up",
		"service rollback":   "gantry rollback SERVICE",
		"stack":              "gantry up, and gantry down",
		"stack deploy":       "gantry up -f FILE -p NAME",
		"swarm":              "gantry init --advertise ADDRESS, and gantry join",
		"swarm init":         "gantry init --advertise ADDRESS",
		"swarm join":         "gantry join",
		"system events":      "gantry events",
		"tag":                "gantry image tag",
		"trust":              "images are pinned by digest: NAME@sha256:…",
		"update":             "change the Compose file and run gantry up; a container of gantry run is made again",
		"volume update":      "make a new volume and copy the data",
		"watch":              "gantry up --build after a change",
	}
}

const (
	asJSON     = "-o json prints everything; pick from it with a program such as jq"
	notTied    = "gantry up attaches to nothing and returns when all is healthy: gantry logs -f, gantry wait"
	alwaysKept = "leave it out: the image is always kept here"
)

func flags() map[string]string {
	return map[string]string{
		"* --format":           asJSON,
		"* --filter":           asJSON,
		"* --json":             "-o json",
		"* --context":          "choose the daemon with --host or GANTRY_HOST",
		"* --ansi":             "--plain prints lines; NO_COLOR turns colours off",
		"* --compatibility":    "leave it out: deploy: is read in any case",
		"* --parallel":         "leave it out",
		"config --services":    "gantry convert --services",
		"config --images":      "gantry convert --images",
		"config --quiet":       "gantry convert --quiet",
		"config -q":            "gantry convert --quiet",
		"events -f":            asJSON,
		"image ls -a":          "leave it out: steps of builds are no images here; gantry system df shows the build cache",
		"image ls --all":       "leave it out: steps of builds are no images here; gantry system df shows the build cache",
		"image ls -f":          asJSON,
		"inspect -f":           asJSON,
		"inspect --type":       "gantry inspect is for containers; gantry image, volume and network have an inspect of their own",
		"inspect -s":           "gantry system df",
		"inspect --size":       "gantry system df",
		"logs --details":       "gantry inspect shows labels and variables",
		"ps -s":                "gantry diff, and gantry system df",
		"ps --size":            "gantry diff, and gantry system df",
		"ps --orphans":         "leave it out: services that the file no longer has are listed",
		"cp -q":                "leave it out: nothing is printed",
		"cp --quiet":           "leave it out: nothing is printed",
		"cp --all":             "name the containers: SERVICE.1, SERVICE.2",
		"cp --index":           "name the container: SERVICE.2",
		"port --index":         "name the container: SERVICE.2",
		"port --protocol":      "gantry port TARGET 53/udp",
		"stats --format":       asJSON,
		"stats -a":             "-A shows all of the environment",
		"system df -v":         "gantry image ls, gantry volume ls and gantry ps list what there is",
		"system df --verbose":  "gantry image ls, gantry volume ls and gantry ps list what there is",
		"version --short":      "gantry version --client",
		"volume create --name": "gantry volume create NAME",
		"volume ls -f":         asJSON,

		"build -o":                  "build an image; gantry image export and gantry cp get files out",
		"build --output":            "build an image; gantry image export and gantry cp get files out",
		"build --load":              alwaysKept,
		"build --rm":                "leave it out: builds leave no containers",
		"build --force-rm":          "leave it out: builds leave no containers",
		"build --squash":            "put the steps into one RUN, or copy from a stage: COPY --from",
		"build --memory":            "builds run with the limits of the daemon",
		"build -m":                  "builds run with the limits of the daemon",
		"build --cpuset-cpus":       "builds run with the limits of the daemon",
		"build --cpu-quota":         "builds run with the limits of the daemon",
		"build --ulimit":            "builds run with the limits of the daemon",
		"build --allow":             "builds get no extra rights",
		"build --attest":            "no attestations are made",
		"build --sbom":              "no attestations are made",
		"build --provenance":        "no attestations are made",
		"build --builder":           "leave it out: the daemon builds",
		"build --no-cache-filter":   "--no-cache drops the cache of all stages",
		"build --with-dependencies": "leave out the names: gantry build builds all services",

		"exec --no-TTY": "-T",

		"run --gpus":                  "reserve a named device in a Compose file (deploy.resources.reservations.devices), or give the device files: --device",
		"run -a":                      "leave it out: without -d, output is connected; -i connects input",
		"run --attach":                "leave it out: without -d, output is connected; -i connects input",
		"run --link":                  "containers of a network find each other by name: --network, or --app",
		"run --volumes-from":          "name the volume in both: -v NAME:/path",
		"run --isolation":             "Windows only",
		"run --runtime":               "runc is the only one there is",
		"run --storage-opt":           "put data on a volume with a size: gantry volume create -d pool --opt size=1g",
		"run --cgroup-parent":         "control groups hang below the one of the daemon (gantryd --cgroup-parent)",
		"run --volume-driver":         "gantry volume create -d DRIVER NAME",
		"run --disable-content-trust": "name the digest: IMAGE@sha256:…",
		"run --ip6":                   "IPv6 addresses are given by the node",
		"run --link-local-ip":         "there is one address per container",
		"run --use-aliases":           "--network-alias NAME",
		"run --service-ports":         "-p publishes a port",
		"run --no-deps":               "leave it out: nothing else is started",
		"run -T":                      "leave it out: there is a terminal with -t only",
		"run --device-read-bps":       "limits per device are not there yet; use --blkio-weight",
		"run --device-write-bps":      "limits per device are not there yet; use --blkio-weight",
		"run --device-read-iops":      "limits per device are not there yet; use --blkio-weight",
		"run --device-write-iops":     "limits per device are not there yet; use --blkio-weight",
		"run --kernel-memory":         "the kernel has no such limit any more; use --memory",

		"up --abort-on-container-exit":    notTied,
		"up --abort-on-container-failure": notTied,
		"up --attach":                     notTied,
		"up --attach-dependencies":        notTied,
		"up --no-attach":                  notTied,
		"up --exit-code-from":             notTied,
		"up --no-log-prefix":              notTied,
		"up --no-color":                   "NO_COLOR=1 gantry up",
		"up --timestamps":                 notTied,
		"up --menu":                       notTied,
		"up -w":                           "gantry up --build after a change",
		"up --watch":                      "gantry up --build after a change",
		"up --dry-run":                    "gantry plan",
		"up --no-start":                   "gantry plan shows what would be made; gantry build makes the images",
		"up --no-recreate":                "name the services that may change: gantry up SERVICE",
		"up --always-recreate-deps":       "gantry up --force-recreate",
		"up -V":                           "gantry rm -f -v SERVICE removes them; the containers are made again",
		"up --renew-anon-volumes":         "gantry rm -f -v SERVICE removes them; the containers are made again",
		"up -y":                           "leave it out: nothing is asked",
		"up --yes":                        "leave it out: nothing is asked",
		"down --dry-run":                  "gantry ps shows what is there",
		"restart --no-deps":               "leave out restart: true in depends_on",
		"stop --no-deps":                  "leave it out: only what is named is stopped",
	}
}
