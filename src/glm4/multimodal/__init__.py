"""Pictures and other media: fetched, decoded and brought to the size a model takes. Untrusted until then."""
