// Package cache owns the model directory: it resolves what a node should hold, reserves room, fetches,
// verifies, publishes, and evicts what nobody asks for any more.
//
// Invariants, each with a test that tries to break it:
//
//  1. A visible model (a directory in models/) is complete and verified.
//  2. A crash at any instruction leaves only partial downloads to resume and leftovers to sweep.
//  3. Reserved + used never passes the limit, and the reservation comes before the first byte.
//  4. One process owns the directory.
//  5. The disk is the only database: Open rebuilds everything by one walk.
//
// Layout under Config.Root, which is one filesystem, because models are hard links of blobs:
//
//	models/by-name/<name>/            what pods mount, read-only; appears and changes in one rename
//	models/by-name/<name>@<rev12>/    the same for pods that pin; stays while the revision is current or kept as old
//	models/hub/models--org--name/     of what is from a hub: refs, snapshots/<commit>, trees, for HF_HUB_CACHE
//	store/blobs/sha256/ab/<hex>       content; with a link count of one nobody uses it
//	store/partial/<name>/             plan.json, and per file NNNNN (data) and NNNNN.json (journal: how far
//	                                  each range has come, and the state of the hash); NNNNN.d holds the members of
//	                                  an archive, once the journal says so in its place
//	store/manifests/<name>.json       what the visible directory holds; <name>+next.json while it is exchanged
//	store/revisions/<name>@<rev12>.json  the same of an old revision
//	store/state/<name>.json           wishes, pins, last use
//	store/scrub.json                  how far the content has been read again
//	store/lock                        held (flock) while the cache is open; says that store/ is a cache's
//
// What somebody else put into models/by-name stays, counts as used, and is in the way of a model of that
// name. Open refuses a store/ that has no lock and is not empty.
//
// Eviction goes by last use: opens of files are seen (see inotify for which are not) and noted within ten
// seconds, and are durable within the hour and when Run ends.
package cache
