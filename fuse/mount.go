// SPDX-License-Identifier: Apache-2.0

package fuse

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/keyhole-agent/keyhole/secret"
)

// What the mount is called in /proc/mounts, and how a stale one is recognised.
const (
	mountSource = "keyhole"
	mountType   = "fuse.keyhole"
)

// mount is what was mounted and made in the file tree, for removing it.
type mount struct {
	dir, private string // private is "" when fusermount3 mounted dir
	device       string // of the superblock, as in the mount table; "" until it is mounted
	made         []string
	link, target string // the symbolic link and what it says
	linked       bool
}

// newMount prepares the folders, replaces what a killed agent left there, and
// mounts. The descriptor is the kernel's side of the mount: whoever has it can
// serve it.
func newMount(config Config) (*mount, int, error) {
	m := &mount{}
	fd, err := m.mount(config)
	if err != nil {
		return nil, -1, errors.Join(fmt.Errorf("mounting %s: %w", config.Dir, err), m.remove())
	}
	return m, fd, nil
}

// mount returns an error and no descriptor, or both mount and descriptor.
func (m *mount) mount(config Config) (fd int, err error) {
	if m.dir, err = m.claim(config.Dir, 0o755); err != nil {
		return -1, err
	}
	if config.SelfLink != "" {
		if err := m.planLink(config.SelfLink); err != nil {
			return -1, err
		}
	}
	if os.Geteuid() != 0 {
		if fd, err = fusermount(m.dir); err == nil {
			m.device = deviceAt(m.dir)
		}
		return fd, err
	}
	// The mount hides the mode of what it is on, so a folder around it is needed.
	around, err := m.claim(config.Private, 0o700)
	if err == nil {
		err = checkPrivate(around)
	}
	if err != nil {
		return -1, err
	}
	private, err := m.claim(filepath.Join(around, "fs"), 0o700)
	if err != nil {
		return -1, err
	}
	if fd, err = mountDirectly(private); err == nil {
		m.private, m.device = private, deviceAt(private)
	}
	return fd, err
}

// claim makes a folder ready to be mounted on and returns its path without
// symbolic links, as the mount table knows it.
func (m *mount) claim(path string, mode fs.FileMode) (string, error) {
	parent, err := filepath.EvalSymlinks(filepath.Dir(path))
	if err != nil {
		return "", fmt.Errorf("preparing the mount point %s: %w", path, err)
	}
	path = filepath.Join(parent, filepath.Base(path))
	if err := clearStale(path); err != nil {
		return "", err
	}
	switch err := os.Mkdir(path, mode); {
	case err == nil:
		m.made = append(m.made, path)
	case !errors.Is(err, fs.ErrExist):
		return "", fmt.Errorf("making the mount point: %w", err)
	}
	info, err := os.Lstat(path)
	if err != nil {
		return "", fmt.Errorf("preparing the mount point: %w", err)
	}
	if !info.IsDir() {
		return "", fmt.Errorf("%w mount point %s: it is no folder", secret.ErrInvalid, path)
	}
	return path, nil
}

// checkPrivate makes sure that nobody else reaches the mount that can be written.
func checkPrivate(path string) error {
	var stat unix.Stat_t
	if err := unix.Lstat(path, &stat); err != nil {
		return fmt.Errorf("checking %s: %w", path, err)
	}
	if stat.Uid != 0 || stat.Mode&0o077 != 0 {
		return fmt.Errorf("%w folder %s for the agent's own mount: it must belong to root with mode 0700, and has uid %d and mode %#o",
			secret.ErrInvalid, path, stat.Uid, stat.Mode&0o777)
	}
	return nil
}

// mountDirectly mounts on the private folder, as root.
func mountDirectly(private string) (int, error) {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, explain(err)
	}
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other,max_read=%d", fd, maxRead)
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := unix.Mount(mountSource, private, mountType, flags, options); err != nil {
		return -1, errors.Join(explain(err), unix.Close(fd))
	}
	// Or whatever is mounted below a view would appear in both mounts.
	if err := unix.Mount("", private, "", unix.MS_PRIVATE, ""); err != nil {
		return -1, errors.Join(fmt.Errorf("making the mount private: %w", err),
			unix.Unmount(private, unix.MNT_DETACH), unix.Close(fd))
	}
	return fd, nil
}

// explain adds to an error what to do about it.
func explain(err error) error {
	advice := "the kernel's log may say more (dmesg)"
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV):
		advice = "/dev/fuse is missing: load the module (modprobe fuse), or give the container the device (--device /dev/fuse)"
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		advice = "not permitted: the agent needs CAP_SYS_ADMIN and access to /dev/fuse (in a container: --cap-add SYS_ADMIN --device /dev/fuse)"
	}
	return fmt.Errorf("%w: %w: %s", secret.ErrUnavailable, err, advice)
}

// publish shows the private mount at the public path, read-only from its first
// moment on and in every namespace that it propagates to, and makes the link.
// The kernel has been greeted.
func (m *mount) publish(config Config) error {
	if m.private != "" {
		if err := m.bind(); err != nil {
			return err
		}
	}
	if config.SelfLink == "" {
		return nil
	}
	return m.makeLink()
}

func (m *mount) bind() error {
	tree, err := unix.OpenTree(unix.AT_FDCWD, m.private, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("copying the mount: %w", explain(err))
	}
	attributes := unix.MountAttr{
		Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC,
	}
	err = unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attributes)
	if err == nil {
		err = unix.MoveMount(tree, "", unix.AT_FDCWD, m.dir, unix.MOVE_MOUNT_F_EMPTY_PATH)
	}
	if err != nil {
		err = fmt.Errorf("publishing the mount at %s: %w", m.dir, explain(err))
	}
	return errors.Join(err, unix.Close(tree))
}

// planLink works out what the link says, and refuses to replace anything but a
// link.
func (m *mount) planLink(path string) error {
	parent, err := filepath.EvalSymlinks(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("preparing the link %s: %w", path, err)
	}
	m.link = filepath.Join(parent, filepath.Base(path))
	info, err := os.Lstat(m.link)
	if err == nil && info.Mode()&fs.ModeSymlink == 0 {
		return fmt.Errorf("%w link %s: something else is there", secret.ErrInvalid, m.link)
	}
	target, err := filepath.Rel(parent, m.dir)
	if err != nil {
		return fmt.Errorf("preparing the link %s: %w", m.link, err)
	}
	m.target = target + "/self/"
	return nil
}

// makeLink replaces the link in one step: whoever looks finds the old or the new.
func (m *mount) makeLink() error {
	temporary := m.link + ".new"
	if err := os.Remove(temporary); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("making the link %s: %w", m.link, err)
	}
	if err := os.Symlink(m.target, temporary); err != nil {
		return fmt.Errorf("making the link %s: %w", m.link, err)
	}
	if err := os.Rename(temporary, m.link); err != nil {
		return errors.Join(fmt.Errorf("making the link %s: %w", m.link, err), os.Remove(temporary))
	}
	m.linked = true
	return nil
}

// remove unmounts and removes what was made, whatever users are doing there.
func (m *mount) remove() error {
	var failed []error
	if target, err := os.Readlink(m.link); m.linked && err == nil && target == m.target {
		failed = append(failed, os.Remove(m.link))
	}
	switch {
	case m.device == "":
	case m.private != "":
		failed = append(failed, m.detach(m.dir), m.abort(), m.detach(m.private))
	default:
		failed = append(failed, fusermountDetach(m.dir, m.device))
	}
	for _, path := range slices.Backward(m.made) {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			failed = append(failed, fmt.Errorf("removing a mount point: %w", err))
		}
	}
	return errors.Join(failed...)
}

// detach unmounts our mount at path, if it is there; while it is busy, it only
// disappears from the tree.
func (m *mount) detach(path string) error {
	if deviceAt(path) != m.device {
		return nil
	}
	err := unix.Unmount(path, unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EBUSY) {
		err = unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	}
	if err != nil {
		return fmt.Errorf("unmounting %s: %w", path, err)
	}
	return nil
}

// abort ends the connection to the kernel, which files that are still open would
// keep. It may unmount as well.
func (m *mount) abort() error {
	if err := unix.Unmount(m.private, unix.MNT_FORCE|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("ending the mount %s: %w", m.private, err)
	}
	return nil
}
