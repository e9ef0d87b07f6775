"""Generated programs behind bubblewrap, Landlock or a container."""
