// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/keyhole-agent/keyhole/socket/keyholepb"

	"github.com/keyhole-agent/keyhole/secret"
)

// FromSecret shares the bytes of the values with s. Of the Info, keys and
// versions are left out.
func FromSecret(s secret.Secret) *pb.Secret {
	summary := s.Info
	summary.Keys, summary.Versions = nil, nil
	return &pb.Secret{
		Info:    FromInfo(summary),
		Version: fromVersion(s.Version),
		Values:  FromValues(s.Values),
	}
}

// ToSecret copies; the error is secret.ErrInvalid.
func ToSecret(from *pb.Secret) (secret.Secret, error) {
	info, err := ToInfo(from.GetInfo())
	if err != nil {
		return secret.Secret{}, err
	}
	values, err := secret.NewValues(from.GetValues())
	if err != nil {
		return secret.Secret{}, err
	}
	return secret.Secret{Info: info, Version: toVersion(from.GetVersion()), Values: values}, nil
}

// FromValues shares the bytes with v.
func FromValues(v secret.Values) map[string][]byte {
	values := make(map[string][]byte, v.Len())
	for key, value := range v.All() {
		values[key.String()] = value
	}
	return values
}

// FromInfo is the inverse of ToInfo.
func FromInfo(info secret.Info) *pb.SecretInfo {
	to := &pb.SecretInfo{
		Path:     info.Path.String(),
		Id:       info.ID[:],
		Revision: info.Revision,
		Created:  FromTime(info.Created),
		Updated:  FromTime(info.Updated),
		Current:  uint64(info.Current),
		Oldest:   uint64(info.Oldest),
		Latest:   uint64(info.Latest),
		EmptyAt:  FromTime(info.EmptyAt),
	}
	for _, k := range info.Keys {
		to.Keys = append(to.Keys, &pb.KeyInfo{Key: k.Key.String(), Size: int64(k.Size)})
	}
	for _, v := range info.Versions {
		to.Versions = append(to.Versions, fromVersion(v))
	}
	return to
}

// ToInfo returns secret.ErrInvalid when a path, key or ID is malformed.
func ToInfo(from *pb.SecretInfo) (secret.Info, error) {
	path, err := secret.ParsePath(from.GetPath())
	if err != nil {
		return secret.Info{}, err
	}
	info := secret.Info{
		Path:     path,
		Revision: from.GetRevision(),
		Created:  ToTime(from.GetCreated()),
		Updated:  ToTime(from.GetUpdated()),
		Current:  secret.Version(from.GetCurrent()),
		Oldest:   secret.Version(from.GetOldest()),
		Latest:   secret.Version(from.GetLatest()),
		EmptyAt:  ToTime(from.GetEmptyAt()),
	}
	if copy(info.ID[:], from.GetId()) != len(from.GetId()) || len(from.GetId()) != len(info.ID) {
		return secret.Info{}, fmt.Errorf("%w ID of %d bytes", secret.ErrInvalid, len(from.GetId()))
	}
	for _, k := range from.GetKeys() {
		key, err := secret.ParseKey(k.GetKey())
		if err != nil {
			return secret.Info{}, err
		}
		info.Keys = append(info.Keys, secret.KeySize{Key: key, Size: int(k.GetSize())})
	}
	for _, v := range from.GetVersions() {
		info.Versions = append(info.Versions, toVersion(v))
	}
	return info, nil
}

func fromVersion(v secret.VersionInfo) *pb.VersionInfo {
	return &pb.VersionInfo{
		Version:   uint64(v.Version),
		State:     pb.VersionState(v.State) + pb.VersionState_VERSION_STATE_LIVE,
		Created:   FromTime(v.Created),
		DeletedAt: FromTime(v.DeletedAt),
		Size:      int64(v.Size),
		Writer:    v.Writer,
	}
}

func toVersion(from *pb.VersionInfo) secret.VersionInfo {
	v := secret.VersionInfo{
		Version:   secret.Version(from.GetVersion()),
		Created:   ToTime(from.GetCreated()),
		DeletedAt: ToTime(from.GetDeletedAt()),
		Size:      int(from.GetSize()),
		Writer:    from.GetWriter(),
	}
	switch from.GetState() {
	case pb.VersionState_VERSION_STATE_LIVE:
		v.State = secret.Live
	case pb.VersionState_VERSION_STATE_DELETED:
		v.State = secret.Deleted
	default: // what is not said is not served
		v.State = secret.Destroyed
	}
	return v
}

// FromEntry is the inverse of ToEntry.
func FromEntry(e secret.Entry) *pb.Entry {
	return &pb.Entry{Path: e.Path.String(), Folder: e.Folder, Empty: e.Empty}
}

// ToEntry returns secret.ErrInvalid when the path is malformed.
func ToEntry(from *pb.Entry) (secret.Entry, error) {
	path, err := secret.ParsePath(from.GetPath())
	if err != nil {
		return secret.Entry{}, err
	}
	return secret.Entry{Path: path, Folder: from.GetFolder(), Empty: from.GetEmpty()}, nil
}

// FolderPath is secret.ParsePath, and the root for "".
func FolderPath(text string) (secret.Path, error) {
	if text == "" {
		return secret.Path{}, nil
	}
	return secret.ParsePath(text)
}

// FromTime has no message for the zero time.
func FromTime(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

// ToTime has the zero time for no message.
func ToTime(from *timestamppb.Timestamp) time.Time {
	if from == nil {
		return time.Time{}
	}
	return from.AsTime()
}
