"""What is wrong with labelled images: duplicates, doubtful labels, odd files, imbalance."""
