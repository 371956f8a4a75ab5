package compose

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/compose-spec/compose-go/v2/types"
	"google.golang.org/protobuf/types/known/durationpb"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
)

const maxReplicas = 100000

func (c *converter) service(name string, s types.ServiceConfig) *gantryv1.ServiceSpec {
	path := []string{"services", name}
	out := &gantryv1.ServiceSpec{
		Replicas: c.replicas(path, &s), DependsOn: c.dependencies(name), Mode: modeReplicated, Expose: s.Expose,
	}
	if s.Build != nil {
		out.Build = c.build(append(path, "build"), s.Build)
	}
	if d := s.Deploy; d != nil {
		c.deploy(append(path, "deploy"), d, out)
	}
	out.Container = c.container(path, name, &s)
	c.extend(path, s.Extensions[extension], out)
	if isJob(out.Mode) {
		if out.Job == nil {
			out.Job = &gantryv1.JobSpec{}
		}
		c.job(path, &s, out)
	}
	return out
}

func (c *converter) replicas(path []string, s *types.ServiceConfig) int32 {
	n := s.GetScale()
	if n < 0 || n > maxReplicas {
		c.report.invalid(append(path, "scale"), "choose a number from 0 to 100000", "%d instances cannot be had", n)
		return 0
	}
	return int32(n)
}

func (c *converter) deploy(path []string, d *types.DeployConfig, out *gantryv1.ServiceSpec) {
	switch d.Mode {
	case "", modeReplicated:
	case "global", modeReplicatedJob, modeGlobalJob:
		out.Mode = d.Mode
	default:
		c.report.refuse(append(path, "mode"), "the mode "+d.Mode+"; use replicated, global, replicated-job or global-job")
	}
	if d.Replicas != nil && (out.Mode == "global" || out.Mode == modeGlobalJob) {
		c.report.warn(append(path, "replicas"), "a global service has one instance on each node, whatever the number here")
	}
	out.Placement = c.placement(append(path, "placement"), d.Placement)
	if d.EndpointMode != "" && d.EndpointMode != "vip" {
		c.report.refuse(append(path, "endpoint_mode"), "the endpoint mode "+d.EndpointMode+"; the name tasks.SERVICE gives the addresses of all instances")
	}
	out.Labels = d.Labels
	out.Update = c.update(append(path, "update_config"), d.UpdateConfig)
	c.failureAction(append(path, "update_config"), out.Update, "pause", "continue", "rollback")
	out.Rollback = c.update(append(path, "rollback_config"), d.RollbackConfig)
	c.failureAction(append(path, "rollback_config"), out.Rollback, "pause", "continue")
}

// positive leaves a zero duration unset.
func positive(d time.Duration) *durationpb.Duration {
	if d <= 0 {
		return nil
	}
	return durationpb.New(d)
}

func optional(d *types.Duration) *durationpb.Duration {
	if d == nil {
		return nil
	}
	return durationpb.New(time.Duration(*d))
}

func (c *converter) build(path []string, b *types.BuildConfig) *gantryv1.BuildSpec {
	if isRemote(b.Context) {
		c.report.refuse(append(path, "context"), "a build context that is an address; clone it first and name the folder")
	}
	if !slices.Contains([]string{"", "default", "none", "host"}, b.Network) {
		c.report.refuse(append(path, "network"), "the build network "+b.Network+"; use default, none or host")
	}
	out := &gantryv1.BuildSpec{
		Context: b.Context, Dockerfile: b.Dockerfile, DockerfileInline: b.DockerfileInline, Target: b.Target,
		Args: map[string]string{}, Tags: b.Tags, Platforms: b.Platforms, Labels: b.Labels, CacheFrom: b.CacheFrom,
		CacheTo: b.CacheTo, NoCache: b.NoCache, Pull: b.Pull, Network: b.Network, ExtraHosts: hosts(b.ExtraHosts),
		ShmSize: int64(b.ShmSize), Privileged: b.Privileged, AdditionalContexts: c.contexts(path, b.AdditionalContexts),
		Secrets: c.buildSecrets(path, b.Secrets),
	}
	for k, v := range b.Args {
		if v != nil {
			out.Args[k] = *v
		}
	}
	for _, k := range b.SSH {
		id := k.ID
		if k.Path != "" && k.Path != c.in.dir { // an empty path comes back as the directory
			id += "=" + k.Path
		}
		out.Ssh = append(out.Ssh, id)
	}
	slices.Sort(out.Ssh)
	return out
}

func (c *converter) contexts(path []string, m types.Mapping) map[string]string {
	for _, name := range slices.Sorted(maps.Keys(m)) {
		v := m[name]
		if strings.HasPrefix(v, types.ServicePrefix) || isRemote(v) && !strings.HasPrefix(v, "docker-image://") {
			c.report.refuse(append(path, "additional_contexts", name), "this kind of context; name a folder or docker-image://REFERENCE")
		}
	}
	return m
}

// buildSecrets points to where the client reads them during the build; nothing is read here.
func (c *converter) buildSecrets(path []string, list []types.ServiceSecretConfig) map[string]string {
	out := map[string]string{}
	for i, s := range list {
		id := s.Target
		if id == "" {
			id = s.Source
		}
		def := c.model.project.Secrets[s.Source]
		switch {
		case bool(def.External):
			c.report.refuse(append(path, "secrets", fmt.Sprint(i)), "an external secret in a build, which the client cannot read; give it a file or environment")
		case def.File != "":
			out[filepath.Base(id)] = "file:" + def.File
		default:
			out[filepath.Base(id)] = "env:" + def.Environment
		}
	}
	return out
}
