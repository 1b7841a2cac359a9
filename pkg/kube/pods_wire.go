package kube

import (
	"errors"
	"path"
	"slices"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// The numbers of the fields of k8s.io/api/core/v1's messages that are read: they never change. The package
// itself would add 3 MB to the binary, a tenth of it, and read all that a pod holds, its variables among it.
const (
	podMetadata, podSpec, podStatus                   = 1, 2, 3
	metaName, metaNamespace, metaUID                  = 1, 3, 5
	metaCreated, metaAnnotations                      = 8, 12
	specVolumes, specContainers, specInitContainers   = 1, 2, 20
	volumeName, volumeSource, sourceHostPath          = 1, 2, 1
	containerMounts, mountVolume, mountSub, statPhase = 9, 1, 4, 1
)

// fields calls f with each field of a message that holds bytes, text or another message.
func fields(message []byte, f func(number protowire.Number, value []byte) error) error {
	for len(message) > 0 {
		number, kind, n := protowire.ConsumeTag(message)
		if n < 0 {
			return protowire.ParseError(n)
		}
		message = message[n:]
		if kind != protowire.BytesType {
			if n = protowire.ConsumeFieldValue(number, kind, message); n < 0 {
				return protowire.ParseError(n)
			}
			message = message[n:]
			continue
		}
		value, n := protowire.ConsumeBytes(message)
		if n < 0 {
			return protowire.ParseError(n)
		}
		message = message[n:]
		if err := f(number, value); err != nil {
			return err
		}
	}
	return nil
}

// pairs are the two texts of a message: a map's entry, or a field in a field.
func texts(message []byte, numbers ...protowire.Number) ([]string, error) {
	out := make([]string, len(numbers))
	err := fields(message, func(number protowire.Number, value []byte) error {
		if i := slices.Index(numbers, number); i >= 0 {
			out[i] = string(value)
		}
		return nil
	})
	return out, err
}

// parsePod reads a v1.Pod as v1.Pod.Marshal writes it. ended is that its containers have ended for good.
func parsePod(message []byte) (p Pod, ended bool, err error) {
	var spec []byte
	err = fields(message, func(number protowire.Number, value []byte) error {
		switch number {
		case podMetadata:
			return p.metadata(value)
		case podSpec:
			spec = value
		case podStatus:
			phase, err := texts(value, statPhase)
			ended = err == nil && (phase[0] == "Succeeded" || phase[0] == "Failed")
			return err
		}
		return nil
	})
	if err == nil {
		p.HostPaths, err = hostPaths(spec)
	}
	if err == nil && p.UID == "" {
		err = errors.New("it has no uid")
	}
	return p, ended, err
}

func (p *Pod) metadata(message []byte) error {
	names, err := texts(message, metaName, metaNamespace, metaUID)
	if err != nil {
		return err
	}
	p.Name, p.Namespace, p.UID = names[0], names[1], names[2]
	return fields(message, func(number protowire.Number, value []byte) error {
		switch number {
		case metaAnnotations:
			entry, err := texts(value, 1, 2)
			if err == nil && entry[0] == ModelsAnnotation {
				p.Models = entry[1]
			}
			return err
		case metaCreated:
			if _, _, n := protowire.ConsumeTag(value); n > 0 && len(value) > n {
				if seconds, m := protowire.ConsumeVarint(value[n:]); m > 0 {
					p.Created = time.Unix(int64(seconds), 0).UTC()
				}
			}
		}
		return nil
	})
}

// hostPaths are the folders of the host that the containers of a pod mount.
func hostPaths(spec []byte) ([]string, error) {
	volumes := map[string]string{}
	var found []string
	err := fields(spec, func(number protowire.Number, value []byte) error {
		if number != specVolumes {
			return nil
		}
		name := ""
		return fields(value, func(number protowire.Number, value []byte) error {
			switch number {
			case volumeName:
				name = string(value)
			case volumeSource:
				return fields(value, func(number protowire.Number, value []byte) error {
					if number != sourceHostPath {
						return nil
					}
					where, err := texts(value, 1)
					volumes[name] = where[0]
					return err
				})
			}
			return nil
		})
	})
	if err != nil || len(volumes) == 0 {
		return nil, err
	}
	err = fields(spec, func(number protowire.Number, container []byte) error {
		if number != specContainers && number != specInitContainers {
			return nil
		}
		return fields(container, func(number protowire.Number, value []byte) error {
			if number != containerMounts {
				return nil
			}
			mount, err := texts(value, mountVolume, mountSub)
			if err != nil {
				return err
			}
			if host, ok := volumes[mount[0]]; ok {
				found = append(found, path.Join(host, mount[1]))
			}
			return nil
		})
	})
	slices.Sort(found)
	return slices.Compact(found), err
}
