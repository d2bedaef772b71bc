"""How near a picture comes to the truth: PSNR, SSIM, LPIPS, and CLIP's features."""
