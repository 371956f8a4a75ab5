package registry

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/internal/boltcheck"
)

// links is the file that says which digests and tags each repository has:
//
//	repositories/NAME/blobs/DIGEST        when it was linked
//	repositories/NAME/manifests/DIGEST    a manifestRecord
//	repositories/NAME/tags/TAG            a digest
//	repositories/NAME/referrers/SUBJECT@DIGEST
//
// Every change is on disk when its call returns.
type links struct{ db *bolt.DB }

// manifestRecord is what is known of a manifest without reading it.
type manifestRecord struct {
	MediaType    string            `json:"mediaType"`
	ArtifactType string            `json:"artifactType,omitempty"`
	Size         int64             `json:"size"`
	Subject      digest.Digest     `json:"subject,omitempty"`
	Annotations  map[string]string `json:"annotations,omitempty"`
	// Refs are the blobs and manifests that it needs.
	Refs   []digest.Digest `json:"refs,omitempty"`
	Linked time.Time       `json:"linked"`
}

const (
	bucketRepos     = "repositories"
	bucketBlobs     = "blobs"
	bucketManifests = "manifests"
	bucketTags      = "tags"
	bucketReferrers = "referrers"
)

func openLinks(file string) (*links, error) {
	const lost = "restore the file from a backup; without it what was pushed is no longer found"
	if err := boltcheck.File(file, nil); fault.Is(err, fault.Corrupt) {
		return nil, fault.Wrap(fault.Corrupt, err, "registry: what was pushed cannot be read").WithHint(lost)
	} else if err != nil {
		return nil, err
	}
	db, err := bolt.Open(file, 0o600, &bolt.Options{Timeout: time.Second})
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil, fault.Wrap(fault.Conflict, err, "registry: %s is in use by another process", file)
	}
	if err != nil {
		return nil, fault.Wrap(fault.Corrupt, err, "registry: %s cannot be opened", file).
			WithHint(lost)
	}
	err = db.Update(func(tx *bolt.Tx) error {
		_, err := tx.CreateBucketIfNotExists([]byte(bucketRepos))
		return err
	})
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "registry: %s cannot be written", file)
	}
	return &links{db}, nil
}

func (l *links) close() error { return l.db.Close() }

// view reads one of a repository's buckets; missing is an empty one.
func (l *links) view(repo, bucket string, read func(b *bolt.Bucket) error) error {
	return l.db.View(func(tx *bolt.Tx) error {
		if r := tx.Bucket([]byte(bucketRepos)).Bucket([]byte(repo)); r != nil {
			if b := r.Bucket([]byte(bucket)); b != nil {
				return read(b)
			}
		}
		return nil
	})
}

// update changes a repository, which is made if need be.
func (l *links) update(repo string, change func(repoTx) error) error {
	return l.db.Update(func(tx *bolt.Tx) error {
		r, err := tx.Bucket([]byte(bucketRepos)).CreateBucketIfNotExists([]byte(repo))
		if err != nil {
			return err
		}
		return change(repoTx{r})
	})
}

// repoTx is a repository within a transaction.
type repoTx struct{ b *bolt.Bucket }

func (t repoTx) put(bucket, key string, value []byte) error {
	b, err := t.b.CreateBucketIfNotExists([]byte(bucket))
	if err != nil {
		return err
	}
	return b.Put([]byte(key), value)
}

func (t repoTx) delete(bucket, key string) error {
	b := t.b.Bucket([]byte(bucket))
	if b == nil {
		return nil
	}
	return b.Delete([]byte(key))
}

func (t repoTx) each(bucket string, do func(k, v string) error) error {
	b := t.b.Bucket([]byte(bucket))
	if b == nil {
		return nil
	}
	return b.ForEach(func(k, v []byte) error { return do(string(k), string(v)) })
}

func (l *links) has(repo, bucket, key string) (found bool, err error) {
	err = l.view(repo, bucket, func(b *bolt.Bucket) error { found = b.Get([]byte(key)) != nil; return nil })
	return found, err
}

func (l *links) linkBlob(repo string, d digest.Digest) error {
	return l.update(repo, func(t repoTx) error {
		return t.put(bucketBlobs, d.String(), binary.BigEndian.AppendUint64(nil, uint64(time.Now().Unix())))
	})
}

// manifest finds a manifest by tag or digest.
func (l *links) manifest(repo, ref string) (d digest.Digest, rec manifestRecord, found bool, err error) {
	d = digest.Digest(ref)
	if !strings.Contains(ref, ":") {
		if err := l.view(repo, bucketTags, func(b *bolt.Bucket) error { d = digest.Digest(b.Get([]byte(ref))); return nil }); err != nil {
			return d, rec, false, err
		}
	}
	err = l.view(repo, bucketManifests, func(b *bolt.Bucket) error {
		v := b.Get([]byte(d))
		if v == nil {
			return nil
		}
		found = true
		return json.Unmarshal(v, &rec)
	})
	return d, rec, found, err
}

// linkManifest adds a manifest with its tags in one step.
func (l *links) linkManifest(repo string, d digest.Digest, rec manifestRecord, tags []string) error {
	v, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	return l.update(repo, func(t repoTx) error {
		if err := t.put(bucketManifests, d.String(), v); err != nil {
			return err
		}
		if rec.Subject != "" {
			if err := t.put(bucketReferrers, rec.Subject.String()+"@"+d.String(), []byte{}); err != nil {
				return err
			}
		}
		for _, tag := range tags {
			if err := t.put(bucketTags, tag, []byte(d)); err != nil {
				return err
			}
		}
		return nil
	})
}

// unlinkManifest removes a manifest and every tag that stands for it.
func (l *links) unlinkManifest(repo string, d digest.Digest, rec manifestRecord) error {
	return l.update(repo, func(t repoTx) error {
		var tags []string
		err := t.each(bucketTags, func(k, v string) error {
			if v == d.String() {
				tags = append(tags, k)
			}
			return nil
		})
		for _, tag := range tags {
			err = errors.Join(err, t.delete(bucketTags, tag))
		}
		return errors.Join(err, t.delete(bucketManifests, d.String()), t.delete(bucketReferrers, rec.Subject.String()+"@"+d.String()))
	})
}

func (l *links) remove(repo, bucket, key string) error {
	return l.update(repo, func(t repoTx) error { return t.delete(bucket, key) })
}

// keys lists up to n keys of a bucket after last, in order; all if n is negative.
func (l *links) keys(repo, bucket, last string, n int) (out []string, err error) {
	err = l.view(repo, bucket, func(b *bolt.Bucket) error {
		c := b.Cursor()
		k, _ := c.Seek([]byte(last))
		for ; k != nil && (n < 0 || len(out) < n); k, _ = c.Next() {
			if string(k) != last {
				out = append(out, string(k))
			}
		}
		return nil
	})
	return out, err
}

// repositories lists every repository that has something.
func (l *links) repositories() (out []string, err error) {
	err = l.db.View(func(tx *bolt.Tx) error {
		return tx.Bucket([]byte(bucketRepos)).ForEachBucket(func(k []byte) error {
			r := tx.Bucket([]byte(bucketRepos)).Bucket(k)
			for _, name := range []string{bucketManifests, bucketBlobs} {
				if b := r.Bucket([]byte(name)); b != nil {
					if first, _ := b.Cursor().First(); first != nil {
						out = append(out, string(k))
						return nil
					}
				}
			}
			return nil
		})
	})
	return out, err
}

// referrers lists the manifests that have a subject.
func (l *links) referrers(repo string, subject digest.Digest) (out []ocispec.Descriptor, err error) {
	var found []string
	err = l.view(repo, bucketReferrers, func(b *bolt.Bucket) error {
		prefix := subject.String() + "@"
		c := b.Cursor()
		for k, _ := c.Seek([]byte(prefix)); strings.HasPrefix(string(k), prefix); k, _ = c.Next() {
			found = append(found, strings.TrimPrefix(string(k), prefix))
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, ref := range found {
		d, rec, ok, err := l.manifest(repo, ref)
		if err != nil {
			return nil, err
		}
		if ok {
			out = append(out, ocispec.Descriptor{MediaType: rec.MediaType, Digest: d, Size: rec.Size, ArtifactType: rec.ArtifactType, Annotations: rec.Annotations})
		}
	}
	return out, nil
}
