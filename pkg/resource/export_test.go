package resource

// Affinity is for tests that try all sets.
var Affinity = affinity
