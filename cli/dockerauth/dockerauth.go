// Package dockerauth finds registry credentials where Docker keeps them: in its config file and credential helpers.
//
// Make a Keychain with Load and ask it per registry. A Keychain is safe in parallel after Load. It never writes.
package dockerauth

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
)

const hub = "docker.io"

// hubKey is the name under which Docker keeps the credentials of its own registry.
const hubKey = "https://index.docker.io/v1/"

type entry struct {
	Auth          string `json:"auth"`
	Username      string `json:"username"`
	Password      string `json:"password"`
	IdentityToken string `json:"identitytoken"`
	RegistryToken string `json:"registrytoken"`
}

// Keychain is a loaded config file. The zero value has no credentials.
type Keychain struct {
	path        string
	Auths       map[string]entry  `json:"auths"`
	CredHelpers map[string]string `json:"credHelpers"`
	CredsStore  string            `json:"credsStore"`
}

// Load reads $DOCKER_CONFIG/config.json or ~/.docker/config.json. A file that is not there is an empty keychain.
func Load() (*Keychain, error) {
	dir := os.Getenv("DOCKER_CONFIG")
	if dir == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return &Keychain{}, nil
		}
		dir = filepath.Join(home, ".docker")
	}
	k := &Keychain{path: filepath.Join(dir, "config.json")}
	data, err := os.ReadFile(k.path)
	if errors.Is(err, fs.ErrNotExist) {
		return k, nil
	}
	if err != nil {
		return nil, fault.Wrap(fault.Denied, err, "registry credentials cannot be read")
	}
	if err := json.Unmarshal(data, k); err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "registry credentials in %s are not valid JSON", k.path).
			WithHint("correct the file, or set DOCKER_CONFIG to another folder")
	}
	return k, nil
}

// Registry returns the registry that an image reference points to.
func Registry(image string) string {
	first, _, ok := strings.Cut(image, "/")
	if ok && (strings.ContainsAny(first, ".:") || first == "localhost") {
		if first == "index.docker.io" || first == "registry-1.docker.io" {
			return hub
		}
		return first
	}
	return hub
}

// For returns the credentials for an image's registry, nil if there are none.
func (k *Keychain) For(ctx context.Context, image string) (*gantryv1.RegistryAuth, error) {
	return k.forRegistry(ctx, Registry(image))
}

// All returns the credentials of every registry that the file names, for builds whose base images are not known yet.
// A registry whose credentials cannot be had is left out and its problem returned: the build may not need it.
func (k *Keychain) All(ctx context.Context) (out []*gantryv1.RegistryAuth, problems []error) {
	seen := map[string]bool{}
	names := make([]string, 0, len(k.Auths)+len(k.CredHelpers))
	for name := range k.Auths {
		names = append(names, name)
	}
	for name := range k.CredHelpers {
		names = append(names, name)
	}
	for _, name := range names {
		registry := bare(name)
		if seen[registry] {
			continue
		}
		seen[registry] = true
		auth, err := k.forRegistry(ctx, registry)
		switch {
		case err != nil:
			problems = append(problems, err)
		case auth != nil:
			out = append(out, auth)
		}
	}
	return out, problems
}

func (k *Keychain) forRegistry(ctx context.Context, registry string) (*gantryv1.RegistryAuth, error) {
	if helper, server := k.helper(registry); helper != "" {
		auth, err := ask(ctx, helper, server, registry)
		if auth != nil || err != nil {
			return auth, err
		}
	}
	for name, e := range k.Auths {
		if bare(name) == registry {
			return k.decode(registry, e)
		}
	}
	return nil, nil
}

// helper picks the program to ask, and the name that it knows the registry by.
func (k *Keychain) helper(registry string) (program, server string) {
	server = registry
	if registry == hub {
		server = hubKey
	}
	for name, program := range k.CredHelpers {
		if bare(name) == registry {
			return program, server
		}
	}
	return k.CredsStore, server
}

// bare reduces "https://index.docker.io/v1/" and "https://host:5000" to what references use.
func bare(name string) string {
	name = strings.TrimPrefix(strings.TrimPrefix(name, "https://"), "http://")
	name, _, _ = strings.Cut(name, "/")
	if name == "index.docker.io" || name == "registry-1.docker.io" {
		return hub
	}
	return name
}

func (k *Keychain) decode(registry string, e entry) (*gantryv1.RegistryAuth, error) {
	auth := &gantryv1.RegistryAuth{
		Server: registry, Username: e.Username, Password: e.Password,
		IdentityToken: e.IdentityToken, RegistryToken: e.RegistryToken,
	}
	if e.Auth != "" {
		plain, err := base64.StdEncoding.DecodeString(e.Auth)
		user, password, ok := strings.Cut(strings.TrimRight(string(plain), "\x00"), ":")
		if err != nil || !ok {
			return nil, fault.New(fault.Invalid, "the credentials for %s in %s are damaged", registry, k.path).
				WithHint("log in again: docker login %s", registry)
		}
		auth.Username, auth.Password = user, password
	}
	if auth.Username == "" && auth.IdentityToken == "" && auth.RegistryToken == "" {
		return nil, nil
	}
	return auth, nil
}

// ask runs a credential helper: the registry on its input, JSON on its output.
func ask(ctx context.Context, helper, server, registry string) (*gantryv1.RegistryAuth, error) {
	if strings.ContainsRune(helper, '/') {
		return nil, fault.New(fault.Invalid, "credential helper %q is not a plain name", helper)
	}
	program := "docker-credential-" + helper
	cmd := exec.CommandContext(ctx, program, "get")
	cmd.Stdin = strings.NewReader(server)
	var out, diag bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &diag
	if err := cmd.Run(); err != nil {
		said := strings.TrimSpace(out.String() + diag.String())
		if strings.Contains(said, "credentials not found") {
			return nil, nil
		}
		return nil, fault.Wrap(fault.Denied, err, "credential helper %s failed for %s: %s", program, registry, said).
			WithHint("try it: echo %s | %s get", server, program)
	}
	var got struct{ Username, Secret string }
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "credential helper %s answered something else than JSON", program)
	}
	auth := &gantryv1.RegistryAuth{Server: registry, Username: got.Username, Password: got.Secret}
	if got.Username == "<token>" {
		auth.Username, auth.Password, auth.IdentityToken = "", "", got.Secret
	}
	return auth, nil
}
