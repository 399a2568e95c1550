"""What is wrong with labelled images: duplicates, doubtful labels, imbalance, odd files."""
