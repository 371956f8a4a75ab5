package machines

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"strings"
	"time"

	"filippo.io/age"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/cli/human"
	"github.com/gantryd/gantry/cli/verb"
	"github.com/gantryd/gantry/client"
	"github.com/gantryd/gantry/fault"
)

// A backup file is the magic line and then the messages of the API, each after its length in four bytes, big-endian. An
// encrypted one is such a file inside of an age file (age-encryption.org/v1) with a passphrase.
const (
	backupMagic = "gantry backup 1\n"
	ageMagic    = "age-encryption.org/"
	maxChunk    = 64 << 20 // bytes
)

func (s verbs) backup() *cobra.Command {
	var passphrase string
	cmd := &cobra.Command{
		Use: "backup FILE", Short: "Write the cluster's whole state, with the key of its secrets, to a file", Args: verb.Between(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.Client()
			if err != nil {
				return err
			}
			size, err := writeBackup(cmd.Context(), c, args[0], passphrase)
			if err != nil {
				return err
			}
			s.Say("%s: %s", args[0], human.Size(size))
			if passphrase == "" {
				s.Say("the file holds the key of all secrets: keep it as you keep them, or encrypt it with --passphrase-file")
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&passphrase, "passphrase-file", "", "encrypt with the passphrase in this file")
	return cmd
}

// writeBackup leaves a whole backup or none.
func writeBackup(ctx context.Context, c *client.Client, path, passphrase string) (int64, error) {
	f, err := os.OpenFile(path+".part", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return 0, fault.Wrap(fault.Unavailable, err, "cannot write the backup")
	}
	defer os.Remove(path + ".part")
	defer f.Close()
	var out io.WriteCloser = struct {
		io.Writer
		io.Closer
	}{f, io.NopCloser(nil)}
	if passphrase != "" {
		if out, err = encrypt(f, passphrase); err != nil {
			return 0, err
		}
	}
	err = copyBackup(ctx, c, out)
	if err == nil {
		err = errors.Join(out.Close(), f.Sync(), os.Rename(path+".part", path))
	}
	if err != nil {
		return 0, fault.Wrap(fault.KindOf(err), err, "the backup was not written")
	}
	info, err := os.Stat(path)
	if err != nil {
		return 0, fault.Wrap(fault.Unavailable, err, "the backup cannot be found again")
	}
	return info.Size(), nil
}

func copyBackup(ctx context.Context, c *client.Client, out io.Writer) error {
	if _, err := io.WriteString(out, backupMagic); err != nil {
		return err
	}
	return client.Each(ctx, c.Cluster.Backup, &gantryv1.BackupRequest{}, func(m *gantryv1.BackupChunk) error {
		b, err := proto.Marshal(m)
		if err != nil {
			return err
		}
		if err := binary.Write(out, binary.BigEndian, uint32(len(b))); err != nil {
			return err
		}
		_, err = out.Write(b)
		return err
	})
}

func readPassphrase(path string) (string, error) {
	b, err := os.ReadFile(path)
	text := strings.TrimRight(string(b), "\r\n")
	if err != nil || text == "" {
		return "", fault.Wrap(fault.Invalid, err, "no passphrase can be read from %s", path)
	}
	return text, nil
}

func encrypt(w io.Writer, passphrase string) (io.WriteCloser, error) {
	text, err := readPassphrase(passphrase)
	if err != nil {
		return nil, err
	}
	to, err := age.NewScryptRecipient(text)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "the passphrase cannot be used")
	}
	return age.Encrypt(w, to)
}

// openBackup gives the messages of a backup file, decrypted.
func openBackup(f io.Reader, passphrase string) (*bufio.Reader, error) {
	r := bufio.NewReader(f)
	if head, _ := r.Peek(len(ageMagic)); string(head) == ageMagic {
		if passphrase == "" {
			return nil, fault.New(fault.Invalid, "the backup is encrypted").WithHint("add --passphrase-file FILE")
		}
		text, err := readPassphrase(passphrase)
		if err != nil {
			return nil, err
		}
		id, err := age.NewScryptIdentity(text)
		if err != nil {
			return nil, fault.Wrap(fault.Invalid, err, "the passphrase cannot be used")
		}
		plain, err := age.Decrypt(r, id)
		if err != nil {
			return nil, fault.Wrap(fault.Denied, err, "the backup cannot be decrypted").WithHint("is it the right passphrase?")
		}
		r = bufio.NewReader(plain)
	}
	magic := make([]byte, len(backupMagic))
	if _, err := io.ReadFull(r, magic); err != nil || string(magic) != backupMagic {
		return nil, fault.New(fault.Invalid, "this is not a backup of Gantry").WithHint("gantry cluster backup FILE makes one")
	}
	return r, nil
}

// nextChunk is io.EOF at the end.
func nextChunk(r io.Reader) (*gantryv1.BackupChunk, error) {
	var size uint32
	if err := binary.Read(r, binary.BigEndian, &size); errors.Is(err, io.EOF) {
		return nil, io.EOF
	} else if err != nil || size > maxChunk {
		return nil, cutShort()
	}
	b := make([]byte, size)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, cutShort()
	}
	m := &gantryv1.BackupChunk{}
	if err := proto.Unmarshal(b, m); err != nil {
		return nil, cutShort()
	}
	return m, nil
}

func cutShort() error {
	return fault.New(fault.Corrupt, "the backup is damaged or was cut short").WithHint("use another backup; nothing was changed")
}

func (s verbs) restore() *cobra.Command {
	var passphrase string
	var force bool
	cmd := &cobra.Command{
		Use: "restore FILE", Short: "Replace the cluster's state by a backup; this machine becomes its only server", Args: verb.Between(1, 1),
		Long: "Replace the cluster's state by a backup. This machine becomes its only server; the others come back as nodes and can\n" +
			"be promoted again. Instances that the backup knows go on running; those it does not know are removed.",
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := os.Open(args[0])
			if err != nil {
				return fault.Wrap(fault.NotFound, err, "the backup cannot be read")
			}
			defer f.Close()
			r, err := openBackup(f, passphrase)
			if err != nil {
				return err
			}
			head, err := nextChunk(r)
			if err != nil {
				return err
			}
			if err := s.Confirm(force, "the present state, for that of cluster "+verb.Line("%s", head.GetCluster())+" as of "+head.GetTime().AsTime().Local().Format(time.DateTime)); err != nil {
				return err
			}
			return s.sendBackup(cmd.Context(), head, r)
		},
	}
	cmd.Flags().StringVar(&passphrase, "passphrase-file", "", "passphrase of an encrypted backup")
	cmd.Flags().BoolVarP(&force, "force", "f", false, "do not ask")
	return cmd
}

func (s verbs) sendBackup(ctx context.Context, m *gantryv1.BackupChunk, r io.Reader) error {
	c, err := s.Client()
	if err != nil {
		return err
	}
	stream := c.Recovery.Restore(ctx)
	for err == nil {
		if err = stream.Send(m); err == nil {
			m, err = nextChunk(r)
		}
	}
	if !errors.Is(err, io.EOF) {
		return err // the stream is not closed: the server sees that it is not whole
	}
	got, err := stream.CloseAndReceive()
	if err != nil {
		return err
	}
	if kept := got.Msg.GetKept(); kept != "" {
		s.Say("the state before is kept in %s", kept)
	}
	return s.afterRecovery(ctx, c)
}

// afterRecovery waits until the server leads again, and does what a leader does: before that it may start anew.
func (s verbs) afterRecovery(ctx context.Context, c *client.Client) error {
	for range recoveryTries {
		st, err := client.Call(ctx, c.Cluster.Status, &gantryv1.ClusterStatusRequest{})
		if err == nil && st.GetLeader() != "" {
			_, err = client.Call(ctx, c.Nodes.List, &gantryv1.ListNodesRequest{})
		}
		if err == nil && st.GetLeader() != "" {
			s.Say("this machine leads cluster %s; make the other servers servers again: gantry node promote NODE", st.GetId())
			return nil
		}
		select {
		case <-time.After(handOverWait):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return fault.New(fault.Timeout, "the state was replaced, and this server does not lead yet").WithHint("see the log of gantryd")
}

const recoveryTries = 60

func (s verbs) recover() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: "recover", Short: "Make a cluster of this one server when most servers are lost for good", Args: verb.Between(0, 0),
		Long: "Make a cluster of this one server, with the state it has, when most servers are lost for good. Changes that only\n" +
			"the lost servers had are gone. Servers that come back after all begin again as nodes.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := s.Confirm(force, "the other servers from the cluster's state"); err != nil {
				return err
			}
			c, err := s.Client()
			if err != nil {
				return err
			}
			if _, err := client.Call(cmd.Context(), c.Recovery.ForceNewCluster, &gantryv1.ForceNewClusterRequest{}); err != nil {
				return err
			}
			return s.afterRecovery(cmd.Context(), c)
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "do not ask")
	return cmd
}
