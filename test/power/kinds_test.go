package power_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strconv"
	"strings"

	"connectrpc.com/connect"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/client"
)

const (
	environment = "production"
	app         = "shop"
	stateLabel  = "state"
)

// kind is a kind of things that a client can change. put gives a thing a state, nil where
// names are not ours to choose; remove makes it absent, nil where nothing does; read tells the states of all there are.
type kind struct {
	name   string
	put    func(ctx context.Context, c *client.Client, name, state string) error
	remove func(ctx context.Context, c *client.Client, name string) error
	read   func(ctx context.Context, c *client.Client) (map[string]string, error)
	once   bool // put works only on what is absent
	// No name is used twice. An image is on the machine that has imported it: a name that is given to another image through
	// another server means two images.
	fresh bool
	// One server asks all machines.
	everywhere bool
}

// token is the kind of things that get their names when they are made.
const token = "token"

func kinds() []kind {
	return []kind{
		{name: "config", put: putConfig, remove: removeConfig, read: readConfigs},
		{name: "secret", put: putSecret, remove: removeSecret, read: readSecrets},
		{name: "volume", put: putVolume, remove: removeVolume, read: readVolumes, once: true},
		{name: "image", put: putImage, remove: removeImage, read: readImages, fresh: true, everywhere: true},
		{name: "scale", put: putScale, read: readScale},
		{name: token, remove: revokeToken, read: readTokens},
	}
}

// call makes a request of which only success counts.
func call[Req, Resp any](ctx context.Context, method func(context.Context, *connect.Request[Req]) (*connect.Response[Resp], error), req *Req) error {
	_, err := client.Call(ctx, method, req)
	return err
}

func file(name, state string) *gantryv1.CreateFileRequest {
	return &gantryv1.CreateFileRequest{
		Environment: environment, Name: name, Content: content(state)[:1+len(state)*100], Replace: true,
		Labels: map[string]string{stateLabel: state},
	}
}

func putConfig(ctx context.Context, c *client.Client, name, state string) error {
	return call(ctx, c.Configs.Create, file(name, state))
}

func putSecret(ctx context.Context, c *client.Client, name, state string) error {
	return call(ctx, c.Secrets.Create, file(name, state))
}

func removeConfig(ctx context.Context, c *client.Client, name string) error {
	return call(ctx, c.Configs.Remove, &gantryv1.FileTarget{Environment: environment, Name: name})
}

func removeSecret(ctx context.Context, c *client.Client, name string) error {
	return call(ctx, c.Secrets.Remove, &gantryv1.FileTarget{Environment: environment, Name: name})
}

func readConfigs(ctx context.Context, c *client.Client) (map[string]string, error) {
	res, err := client.Call(ctx, c.Configs.List, &gantryv1.ListFilesRequest{Environment: environment})
	return statesOf(res, err)
}

func readSecrets(ctx context.Context, c *client.Client) (map[string]string, error) {
	res, err := client.Call(ctx, c.Secrets.List, &gantryv1.ListFilesRequest{Environment: environment})
	return statesOf(res, err)
}

func statesOf(res *gantryv1.ListFilesResponse, err error) (map[string]string, error) {
	out := map[string]string{}
	for _, f := range res.GetFiles() {
		out[strings.TrimPrefix(f.Meta.Key, environment+"/")] = f.Meta.Labels[stateLabel]
	}
	return out, err
}

const there = "there"

func putVolume(ctx context.Context, c *client.Client, name, _ string) error {
	return call(ctx, c.Volumes.Create, &gantryv1.CreateVolumeRequest{Environment: environment, Name: name})
}

func removeVolume(ctx context.Context, c *client.Client, name string) error {
	return call(ctx, c.Volumes.Remove, &gantryv1.VolumeTarget{Environment: environment, Name: name})
}

func readVolumes(ctx context.Context, c *client.Client) (map[string]string, error) {
	res, err := client.Call(ctx, c.Volumes.List, &gantryv1.ListVolumesRequest{Environment: environment})
	out := map[string]string{}
	for _, v := range res.GetVolumes() {
		if name := strings.TrimPrefix(v.Volume.Meta.Key, environment+"/"); !strings.HasPrefix(name, app+"/") {
			out[name] = there
		}
	}
	return out, err
}

// content is what a thing of that state holds: the same for everybody who knows the state.
func content(state string) []byte {
	out := make([]byte, 64<<10)
	_, _ = rand.NewChaCha8(sha256.Sum256([]byte(state))).Read(out)
	return out
}

const imagePrefix = "power-"

// putImage imports an image of one layer with one file.
func putImage(ctx context.Context, c *client.Client, called, state string) error {
	archive, err := archiveOf(imagePrefix+called+":1", state)
	if err != nil {
		return err
	}
	stream := c.Images.Import(ctx)
	if err := stream.Send(&gantryv1.ImportChunk{Data: archive}); err != nil {
		_, err = stream.CloseAndReceive()
		return err
	}
	_, err = stream.CloseAndReceive()
	return err
}

func archiveOf(tag, state string) ([]byte, error) {
	var files bytes.Buffer
	w := tar.NewWriter(&files)
	if err := w.WriteHeader(&tar.Header{Name: "content", Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(content(state)))}); err != nil {
		return nil, err
	}
	if _, err := w.Write(content(state)); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(files.Bytes())), nil })
	if err != nil {
		return nil, err
	}
	image, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return nil, err
	}
	config, err := image.ConfigFile()
	if err != nil {
		return nil, err
	}
	image, err = mutate.ConfigFile(image, &v1.ConfigFile{
		OS: "linux", Architecture: "amd64", RootFS: config.RootFS, Config: v1.Config{Labels: map[string]string{stateLabel: state}},
	})
	if err != nil {
		return nil, err
	}
	ref, err := name.NewTag(tag)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	err = tarball.Write(ref, image, &out)
	return out.Bytes(), err
}

func removeImage(ctx context.Context, c *client.Client, name string) error {
	res, err := client.Call(ctx, c.Images.Remove, &gantryv1.RemoveImageRequest{Image: imagePrefix + name + ":1"})
	if err == nil {
		err = failed(res.Failures)
	}
	return err
}

// readImages believes no list: it reads every image of every machine with all its bytes.
func readImages(ctx context.Context, c *client.Client) (map[string]string, error) {
	nodes, err := client.Call(ctx, c.Nodes.List, &gantryv1.ListNodesRequest{})
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for _, n := range nodes.Nodes {
		// Asked for by name, a machine that is not back yet is an error.
		res, err := client.Call(ctx, c.Images.List, &gantryv1.ListImagesRequest{Node: n.Node.Meta.Key})
		if err == nil {
			err = failed(res.Failures)
		}
		if err != nil {
			return nil, err
		}
		for _, i := range res.Images {
			readImage(ctx, c, i, out)
		}
	}
	return out, nil
}

// failed is an error if a machine has not done its part of what was answered.
func failed(nodes []*gantryv1.NodeFailure) error {
	if len(nodes) == 0 {
		return nil
	}
	return errors.New(nodes[0].String())
}

func readImage(ctx context.Context, c *client.Client, i *gantryv1.Image, into map[string]string) {
	for _, ref := range i.References {
		_, called, ours := strings.Cut(strings.TrimSuffix(ref, ":1"), "/"+imagePrefix)
		if !ours || strings.Contains(called, "@") {
			continue // what lost its name to a newer one is there by digest
		}
		state := i.Labels[stateLabel]
		if err := wholeImage(ctx, c, ref, state); err != nil {
			state = err.Error()
		}
		into[called] = state
	}
}

func wholeImage(ctx context.Context, c *client.Client, ref, state string) error {
	var all bytes.Buffer
	err := client.Each(ctx, c.Images.Export, &gantryv1.ExportRequest{Images: []string{ref}}, func(chunk *gantryv1.ExportChunk) error {
		all.Write(chunk.Data)
		return nil
	})
	if err == nil && !holds(&all, content(state)) {
		err = fmt.Errorf("the image %s of %q has other content", ref, state)
	}
	return err
}

// holds reports whether a layer of an exported image has that content.
func holds(archive io.Reader, want []byte) bool {
	r := tar.NewReader(archive)
	for {
		if _, err := r.Next(); err != nil {
			return false
		}
		layer, err := gzip.NewReader(r)
		if err != nil {
			continue // a manifest
		}
		if got, err := io.ReadAll(layer); err == nil && bytes.Contains(got, want) {
			return true
		}
	}
}

// scaled begins the names of services that nothing runs, since no machine has the label that they ask for.
const scaled = "scaled"

func putScale(ctx context.Context, c *client.Client, service, state string) error {
	replicas, err := strconv.ParseInt(state, 10, 32)
	if err != nil {
		return err
	}
	return call(ctx, c.Apps.Scale, &gantryv1.ScaleRequest{Environment: environment, App: app, Replicas: map[string]int32{service: int32(replicas)}})
}

func readScale(ctx context.Context, c *client.Client) (map[string]string, error) {
	res, err := client.Call(ctx, c.Apps.Get, &gantryv1.GetAppRequest{Environment: environment, App: app})
	out := map[string]string{}
	for _, s := range res.GetServices() {
		if name := s.Service.GetName(); strings.HasPrefix(name, scaled) && s.Wanted > 0 {
			out[name] = strconv.Itoa(int(s.Wanted))
		}
	}
	return out, err
}

func createToken(ctx context.Context, c *client.Client) (string, error) {
	res, err := client.Call(ctx, c.Cluster.CreateToken, &gantryv1.CreateTokenRequest{Role: "node"})
	return res.GetId(), err
}

func revokeToken(ctx context.Context, c *client.Client, id string) error {
	return call(ctx, c.Cluster.RevokeToken, &gantryv1.RevokeTokenRequest{Id: id})
}

func readTokens(ctx context.Context, c *client.Client) (map[string]string, error) {
	res, err := client.Call(ctx, c.Cluster.ListTokens, &gantryv1.ListTokensRequest{})
	out := map[string]string{}
	for _, t := range res.GetTokens() {
		out[t.Meta.Key] = there
	}
	return out, err
}
