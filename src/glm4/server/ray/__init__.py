"""`glm4 serve --ray`: the same application in several processes of a Ray cluster, behind Ray Serve's proxy."""
