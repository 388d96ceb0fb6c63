"""What a stored file shows: pictures, a page of text, other formats. From the file alone: no torch, no MPI."""
