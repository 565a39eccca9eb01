"""The tools that come with glm4, one file each."""
