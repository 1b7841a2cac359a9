package config

// Nowhere is c without where its keys stand.
func (c Config) Nowhere() Config {
	c.places = places{}
	return c
}
