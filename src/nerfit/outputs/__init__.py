"""What a trained field is taken away as: pictures, videos, meshes, points and drawings of its cameras."""
