"""Out-of-distribution (OOD) detection: families of OOD images, and the detector inside the released model."""
