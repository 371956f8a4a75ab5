// Package fill gives a new volume what the image has at the place where it is mounted.
//
// Ask Needed first: normally nothing is to be done. Volume copies into a directory inside of the volume, which becomes the
// volume's content only when it is whole, so that a copy that was cut short is found and done again, and nothing that
// somebody else has put into the volume is lost. A container may have the volume meanwhile: all of it is done in a root
// directory that holds nothing but the image and the volume, so that no link can lead elsewhere. Not safe in parallel on
// one volume.
package fill

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	continuity "github.com/containerd/continuity/fs"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/engine/inroot"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/internal/ownthread"
)

// Names in a volume: the copy while it is made, and when it is whole and being moved to its place.
const (
	filling = ".gantry-filling"
	filled  = ".gantry-filled"
)

// filesystemsOwn is what a new file system has in its root directory.
const filesystemsOwn = "lost+found"

// Needed says whether something is to be done for a volume: it is empty and content is wanted, or a copy was cut short.
func Needed(volume string, wanted bool) bool {
	return wanted && isEmpty(volume) || exists(filepath.Join(volume, filling)) || exists(filepath.Join(volume, filled))
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func isEmpty(dir string) bool {
	entries, err := os.ReadDir(dir)
	return err == nil && !slices.ContainsFunc(entries, func(d os.DirEntry) bool { return d.Name() != filesystemsOwn })
}

// Job is one volume to be filled.
type Job struct {
	// Scratch is a directory of the caller's own, to mount on.
	Scratch string
	// Image is the image's root directory, Target the place in it.
	Image, Target string
	Volume        string
	// Wanted says that an empty volume is to be filled. Else only what was cut short is settled.
	Wanted bool
}

// Run does the job.
func Run(j Job) error {
	content, err := j.content()
	if err != nil {
		return err
	}
	return ownthread.Run(func() error { // root directory and mounts end with the thread
		if err := j.enter(); err != nil {
			return fault.Wrap(fault.Internal, err, "a root directory for the copy")
		}
		return fill(content)
	})
}

// Paths in the root directory that the work is done in.
const (
	imageDir  = "/image"
	volumeDir = "/volume"
)

// content finds what is to be copied, as a path below imageDir; "" if there is nothing.
func (j Job) content() (string, error) {
	if !j.Wanted {
		return "", nil
	}
	root, err := os.Open(j.Image)
	if err != nil {
		return "", err
	}
	defer root.Close()
	from, err := inroot.Open(root, j.Target, unix.O_PATH, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer from.Close()
	if st, err := from.Stat(); err != nil || !st.IsDir() {
		return "", err
	}
	// Nothing runs on this file system yet, so the path cannot change under us.
	resolved, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(int(from.Fd())))
	if err != nil {
		return "", err
	}
	rest, ok := strings.CutPrefix(resolved, j.Image)
	if !ok {
		return "", fault.New(fault.Internal, "%s is not below %s", resolved, j.Image)
	}
	return imageDir + rest, nil
}

// enter moves this thread into a root directory with the image and the volume.
func (j Job) enter() error {
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", j.Scratch, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700,size=64k"); err != nil {
		return err
	}
	for at, from := range map[string]string{imageDir: j.Image, volumeDir: j.Volume} {
		to := filepath.Join(j.Scratch, at)
		if err := os.Mkdir(to, 0o700); err != nil {
			return err
		}
		if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
			return err
		}
	}
	if err := unix.Mount("", filepath.Join(j.Scratch, imageDir), "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
		return err
	}
	if err := unix.Chroot(j.Scratch); err != nil {
		return err
	}
	return unix.Chdir("/")
}

// fill works inside of the root directory.
func fill(content string) error {
	part, whole := filepath.Join(volumeDir, filling), filepath.Join(volumeDir, filled)
	if err := os.RemoveAll(part); err != nil {
		return err
	}
	if st, err := os.Lstat(whole); err == nil && st.IsDir() {
		return settle(whole)
	}
	if err := os.RemoveAll(whole); err != nil { // a link, for example, which is not of our making
		return err
	}
	if content == "" || !isEmpty(volumeDir) {
		return nil
	}
	if err := continuity.CopyDir(part, content); err != nil {
		return err
	}
	dir, err := os.Open(volumeDir)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := unix.Syncfs(int(dir.Fd())); err != nil {
		return err
	}
	if err := os.Rename(part, whole); err != nil {
		return err
	}
	if err := dir.Sync(); err != nil {
		return err
	}
	return settle(whole)
}

// settle moves a whole copy to its place. What is there already is somebody's own, and stays.
func settle(whole string) error {
	entries, err := os.ReadDir(whole)
	if err != nil {
		return err
	}
	for _, d := range entries {
		from := filepath.Join(whole, d.Name())
		err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, filepath.Join(volumeDir, d.Name()), unix.RENAME_NOREPLACE)
		if errors.Is(err, unix.EEXIST) {
			err = os.RemoveAll(from)
		}
		if err != nil {
			return err
		}
	}
	// The directory is empty now: this copies its owner, mode and attributes.
	if err := continuity.CopyDir(volumeDir, whole); err != nil {
		return err
	}
	return os.Remove(whole)
}
